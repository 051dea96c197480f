"""Depthwise convolution, in the form that is fast on the present platform."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel with its own odd-sided kernel, zero-padded to the same size.

    On a CPU, XLA's grouped convolution is 10 to 60 times slower than a sum of shifted images, which
    XLA fuses into one pass. On a GPU the grouped convolution is up to twice as fast in the backward
    pass (docs/performance.md). So a CPU gets the sum of shifts, and every other platform gets the
    grouped convolution; JAX chooses when it lowers the program. The backward pass keeps only x and
    the kernel.

    Args:
      x: images, (b, h, w, c), floating.
      kernel: (side, side, 1, c), in x's dtype.

    Returns:
      (b, h, w, c) in x's dtype.
    """
    return (grouped_conv if _one_form.get() else _by_platform)(x, kernel)


_one_form = contextvars.ContextVar("one_form", default=False)


@contextlib.contextmanager
def one_form() -> Iterator[None]:
    """Makes `depthwise_conv` the grouped convolution in all that is traced inside the context.

    Formats that know no platforms, such as ONNX, cannot hold the choice among forms.
    """
    token = _one_form.set(True)
    try:
        yield
    finally:
        _one_form.reset(token)


# Without the checkpoint, the gradient of `platform_dependent` would keep the arrays of the forms of
# all platforms, with zeros for the forms that do not run. The checkpoint keeps the two inputs
# instead. It computes nothing twice, because the gradient of a product needs no result of the
# forward pass.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _by_platform(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=sum_of_shifts, default=grouped_conv)


def grouped_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `depthwise_conv` as XLA's convolution with one group for each channel."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def sum_of_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `depthwise_conv` as a sum of shifted images, each times a scalar for each channel.

    The sum is in float32, or in float64 if x is float64.
    """
    side = kernel.shape[0]
    h, w = x.shape[1:3]
    margin = side // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    terms = [
        padded[:, i : i + h, j : j + w].astype(dtype) * kernel[i, j, 0].astype(dtype)
        for i in range(side)
        for j in range(side)
    ]
    return sum(terms[1:], terms[0]).astype(x.dtype)
