"""Lets vmap and XLA split a function of images and parameters image by image."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import NamedSharding, PartitionSpec

from medmamba_jax.ops.pallas_gpu.mosaic import custom_partitioning


@functools.cache
def by_image(function: Callable, mode: Any, unsplit_mode: Any = None) -> Callable:
    """Returns `function(mode, *arrays)` as a function of the arrays that XLA may split by image.

    JAX does not know the structure of a kernel. Without this function, vmap would add a grid axis
    to the kernel, and XLA would gather a sharded batch on every device.

    Args:
      function: takes the mode and the arrays (u, packed, step, bias, A, D, ...). Arrays and results
        have the image axis first, except bias, A, D and, where `mode.rank` is not 0, step: these
        are parameters.
      mode: the static arguments, with `rank` and `interpret` among its attributes.
      unsplit_mode: the mode for the trace of the whole batch; None means `mode`. JAX makes this
        trace before XLA splits the batch, and runs it only if XLA does not split the batch.
    """
    call = functools.partial(function, mode)

    def has_images(position: int) -> bool:
        return position not in ((2, 3, 4, 5) if mode.rank else (3, 4, 5))

    def sharded(axis, shape, mesh, images: bool):
        spec = PartitionSpec(axis) if images and shape.ndim else PartitionSpec()
        return NamedSharding(mesh, spec)

    def image_axis(operands):
        spec = operands[0].sharding.spec if operands[0].sharding is not None else ()
        return spec[0] if len(spec) else None

    def infer(mesh, operands, results):
        axis = image_axis(operands)
        return jax.tree.map(lambda x: sharded(axis, x, mesh, True), results)

    def partition(mesh, operands, results):
        axis = image_axis(operands)
        into = tuple(sharded(axis, x, mesh, has_images(i)) for i, x in enumerate(operands))
        out = jax.tree.map(lambda x: sharded(axis, x, mesh, True), results)
        return mesh, call, out, into

    def rule(mesh, operands, results):
        def axes(side, i, rank, images):
            names = [f"{side}{i}_{axis}" for axis in range(rank)]
            return " ".join(["image", *names[1:]] if images else names)

        operands = (axes("i", i, len(x.shape), has_images(i)) for i, x in enumerate(operands))
        results = (axes("o", i, len(x.shape), True) for i, x in enumerate(results))
        return f"{', '.join(operands)} -> {', '.join(results)}"

    unsplit = functools.partial(function, mode if unsplit_mode is None else unsplit_mode)
    partitioned = custom_partitioning(lambda *arrays: unsplit(*arrays))
    partitioned.def_partition(
        partition=partition, infer_sharding_from_operands=infer, sharding_rule=rule
    )
    # The interpreter's ordered callbacks cannot be partitioned.
    batched = custom_vmap(call if mode.interpret else partitioned)

    @batched.def_vmap
    def fold(size, is_batched, *arrays):
        images = [has_images(i) for i in range(len(arrays))]
        if any(b and not i for b, i in zip(is_batched, images, strict=True)):

            def one(index):
                picked = (x[index] if b else x for x, b in zip(arrays, is_batched, strict=True))
                return batched(*picked)

            outputs = jax.lax.map(one, jnp.arange(size))
        else:

            def with_batch(x, b):
                return x if b else jnp.broadcast_to(x, (size, *x.shape))

            folded = [
                with_batch(x, b).reshape(-1, *x.shape[1 + b :]) if i else x
                for x, b, i in zip(arrays, is_batched, images, strict=True)
            ]
            outputs = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), batched(*folded))
        return outputs, jax.tree.map(lambda _: True, outputs)

    return batched
