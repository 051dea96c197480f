"""Keeps the training images on the devices, and takes every batch there.

Each device keeps the same number of rows of the set. The images of a batch lie on any of the
devices, so each device takes those that it has, with zeros in place of the others. The sum over the
devices is the batch, of which each device keeps its part (a reduce-scatter).
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from medmamba_jax.data import LabelledImages, Preprocessing
from medmamba_jax.data.first_pass import size_text, visited
from medmamba_jax.data.reading.memory import return_free_memory
from medmamba_jax.data.reading.order import Order
from medmamba_jax.data.reading.store import Store, decoded
from medmamba_jax.errors import UserError
from medmamba_jax.parallel import DataParallel

_PART = 2**26  # bytes of images that go to a device at once


def device_memory(parallel: DataParallel) -> int:
    """Returns the bytes that JAX may use on each device; 0 on a CPU, and where that is not known.

    The devices of a run are of one kind. If they differ on this host, the smallest counts.
    """
    if parallel.devices[0].platform == "cpu":
        return 0
    known = [device.memory_stats() or {} for device in parallel.of_this_host.devices]
    return min(stats.get("bytes_limit", 0) for stats in known)


def rows_per_device(count: int, parallel: DataParallel) -> int:
    """Returns how many rows each device keeps of a set of `count` images.

    The last devices may have fewer images than rows.
    """
    return -(-count // len(parallel.devices))


def require_room(
    split: LabelledImages, preprocessing: Preprocessing, parallel: DataParallel
) -> None:
    """Raises UserError if the images are larger than the memory of the devices."""
    memory = device_memory(parallel)
    needed = rows_per_device(len(split), parallel) * preprocessing.image_bytes
    if memory and needed > memory:
        raise UserError(
            f"data.cache='device': the training images take {size_text(needed)} on each device,"
            f" which has {size_text(memory)}: set data.cache to auto"
        )


class DeviceSet:
    """Images, labels and weights of a split as global arrays, whose rows all devices share.

    Attributes:
        arrays: "image" uint8 (rows, h * w * c), "label" int32 (rows,) or float32 (rows, K), and, if
            the split has weights, "weight" float32 (rows,). `rows` is the number of images, rounded
            up to a multiple of the devices; the rows at the end are zeros. Images are flat because
            a TPU would pad the channels.
        shape: (h, w, c).
        parallel: the devices.
    """

    def __init__(
        self, split: LabelledImages, preprocessing: Preprocessing, parallel: DataParallel
    ) -> None:
        """Reads the images in threads, with a progress bar, and puts them on the devices.

        Each host reads the rows of its own devices. What a `Store` has kept of the images in memory
        is freed on the way, so that the host never holds the set twice.

        Args:
            split: the images.
            preprocessing: how they are decoded and resized.
            parallel: the devices.

        Raises:
            UserError: an image cannot be decoded.
        """
        self.shape = (*preprocessing.image_size, preprocessing.channels)
        self.parallel = parallel
        dtype = np.int32 if split.task == "multiclass" else np.float32
        facts = {"label": split.labels.astype(dtype)}
        if split.weights is not None:
            facts["weight"] = split.weights
        self.arrays = {
            "image": _images(split, preprocessing, parallel),
            **{name: _shared(values, parallel) for name, values in facts.items()},
        }
        if isinstance(split.images, Store):
            split.images.forget(split.places)  # also the rows of other hosts
        return_free_memory()

    def batches(
        self, order: Order, *, batch_size: int, steps: int, start_step: int = 0
    ) -> "DeviceBatches":
        """Iterates over batches of the stream that `order` gives, as `data.train_batches` does.

        Args:
            order: global row -> row of the set.
            batch_size: images in a global batch, a multiple of the devices.
            steps: number of batches whose order is computed and sent to the devices at once.
            start_step: the global step of the first batch, counted from 0.
        """
        return DeviceBatches(self, order, batch_size, steps, start_step)


class DeviceBatches(Iterator[dict[str, jax.Array]]):
    """Batches without end, {"image": uint8 (b, h, w, c), "label" and "weight"}, on the devices.

    The host draws the order of `steps` batches at a time, with the sampler that also draws the
    host's batches. So a batch is the same wherever the images are kept. NumPy draws the
    permutations of a sampler, and a device cannot repeat that. Between two draws the host only
    starts programs.

    `close`, which the context manager calls, frees the memory of the set if nothing else holds it.
    """

    def __init__(
        self, images: DeviceSet, order: Order, batch_size: int, steps: int, start_step: int
    ):
        self._arrays: Mapping[str, jax.Array] | None = images.arrays
        self._parallel = images.parallel
        self._order = order
        self._count = (steps, batch_size)
        self._next_row = start_step * batch_size
        self._left = 0  # batches whose order is on the devices
        self._drawn: jax.Array | None = None
        self._position: jax.Array | None = None
        replicated = self._parallel.replicated
        self._take = jax.jit(
            functools.partial(_taken, shape=images.shape, parallel=self._parallel),
            out_shardings=(self._parallel.batch, replicated),
        )

    def __next__(self) -> dict[str, jax.Array]:
        if self._arrays is None:
            raise UserError("the batch iterator is closed")
        if not self._left:
            self._draw()
        self._left -= 1
        batch, self._position = self._take(self._arrays, self._drawn, self._position)
        return batch

    def _draw(self) -> None:
        """Sends the order of the next batches to the devices."""
        count = math.prod(self._count)
        rows = range(self._next_row, self._next_row + count)
        drawn = np.fromiter(map(self._order, rows), np.int32, count).reshape(self._count)
        self._next_row += count
        self._left = self._count[0]
        # The loop forbids implicit transfers. JAX counts these as implicit.
        with jax.transfer_guard("allow"):
            self._drawn, self._position = self._everywhere(drawn), self._everywhere(np.int32(0))

    def _everywhere(self, values: np.ndarray | np.int32) -> jax.Array:
        """Puts an array, the same on every host, on all devices."""
        whole = np.asarray(values)
        sharding = self._parallel.replicated
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    def close(self) -> None:
        """Lets go of the set; `next` then raises UserError."""
        self._arrays = None

    def __enter__(self) -> "DeviceBatches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _taken(
    arrays: Mapping[str, jax.Array],
    order: jax.Array,
    position: jax.Array,
    *,
    shape: tuple[int, ...],
    parallel: DataParallel,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Takes a batch.

    Args:
        arrays: as `DeviceSet.arrays`.
        order: rows of the set, int32 (steps, b).
        position: the index of the step whose rows are taken, int32 scalar.
        shape: of an image.
        parallel: the devices.

    Returns:
        The batch, and the next position, which stays on the devices, so that a step sends nothing.
    """
    rows = order[position]
    if len(parallel.devices) == 1:
        batch = {name: _rows(x, rows) for name, x in arrays.items()}
    else:
        sharding = parallel.batch
        (axis,) = sharding.spec
        batch = jax.shard_map(
            functools.partial(_part, axis=axis),
            mesh=sharding.mesh,
            in_specs=(sharding.spec, PartitionSpec()),
            out_specs=sharding.spec,
        )(dict(arrays), rows)
    batch["image"] = batch["image"].reshape(-1, *shape)
    return batch, position + 1


def _part(arrays: dict[str, jax.Array], rows: jax.Array, *, axis: str) -> dict[str, jax.Array]:
    """Returns this device's part of a batch, of which it holds any rows."""

    def part(x: jax.Array) -> jax.Array:
        own = rows - jax.lax.axis_index(axis) * len(x)
        here = ((own >= 0) & (own < len(x))).reshape(-1, *[1] * (x.ndim - 1))
        # Every row is on one device only, and all others give zeros. So the sum is exact, also in
        # integers of 8 bits.
        taken = jnp.where(here, _rows(x, jnp.clip(own, 0, len(x) - 1)), jnp.zeros((), x.dtype))
        return jax.lax.psum_scatter(taken, axis, tiled=True)

    return {name: part(x) for name, x in arrays.items()}


def _rows(x: jax.Array, rows: jax.Array) -> jax.Array:
    return x.at[rows].get(mode="promise_in_bounds")


def _shared(values: np.ndarray, parallel: DataParallel) -> jax.Array:
    """Puts an array, whose first axis is padded with zeros, on the devices."""
    rows = rows_per_device(len(values), parallel) * len(parallel.devices)
    padded = np.zeros((rows, *values.shape[1:]), values.dtype)
    padded[: len(values)] = values
    return jax.make_array_from_callback(padded.shape, parallel.batch, lambda index: padded[index])


def _images(
    split: LabelledImages, preprocessing: Preprocessing, parallel: DataParallel
) -> jax.Array:
    """Puts the resized images on the devices, flat; see `DeviceSet.arrays`."""
    size, each = preprocessing.image_bytes, rows_per_device(len(split), parallel)
    own = {
        device: range(min(place * each, len(split)), min((place + 1) * each, len(split)))
        for place, device in enumerate(parallel.devices)
        if device in parallel.of_this_host.devices
    }

    def read(row: int) -> np.ndarray:
        return preprocessing.resize(decoded(split, row, preprocessing)).reshape(-1)

    write = jax.jit(
        lambda whole, part, row: jax.lax.dynamic_update_slice(whole, part, (row, 0)),
        donate_argnums=0,
    )
    wanted = list(itertools.chain.from_iterable(own.values()))
    shards, count = [], max(1, _PART // size)  # images in a part
    with contextlib.closing(visited(read, wanted, "to the device")) as images:
        for device, rows in own.items():
            shard = jnp.zeros((each, size), jnp.uint8, device=device)
            for start in range(0, len(rows), count):
                part = rows[start : start + count]
                pixels = np.stack([next(images) for _ in part])
                shard = write(shard, jax.device_put(pixels, device), np.int32(start))
                if isinstance(split.images, Store):
                    split.images.forget(split.places[part.start : part.stop])
                shard.block_until_ready()  # so that few parts at a time are on their way
            shards.append(shard)
    whole = (each * len(parallel.devices), size)
    return jax.make_array_from_single_device_arrays(whole, parallel.batch, shards)
