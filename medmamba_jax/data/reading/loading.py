"""Batches of images: Grain pipelines with an order that only the seed and the step decide."""

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import numpy as np
from absl import flags
from numpy.typing import ArrayLike

from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.dataset import Split
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.images.preprocessing import Preprocessing, decoded
from medmamba_jax.data.reading.order import Order, balanced, shuffled

Batch = dict[str, np.ndarray]

_MAX_READING_THREADS = 16
_PREFETCHED_PARTS_PER_THREAD = 2
_PREFETCHED_BATCHES = 2
_PART = 16  # images


class BatchIterator(Iterator[Batch]):
    """Iterates over batches; closing it ends its threads and worker processes.

    Use it as a context manager or call `close`; the end of the program closes it, too.
    """

    def __init__(self, batches: grain.DatasetIterator):
        self._open = [batches]
        self._finalizer = weakref.finalize(self, _close, self._open)

    def __next__(self) -> Batch:
        if not self._open:
            raise ValueError("the batch iterator is closed")
        return next(self._open[0])

    def close(self) -> None:
        """Ends threads and workers; `next` raises ValueError afterwards. Can be repeated."""
        self._finalizer()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _close(batches: list[grain.DatasetIterator]) -> None:
    # The reference has to go as well: Grain's iterators close themselves again when they are
    # deleted, which prints errors once the interpreter has begun to dismantle its modules.
    while batches:
        batches.pop().close()


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Returns the number of whole global batches in the split.

    Raises:
        ValueError: if the split does not fill one batch.
    """
    if not 1 <= batch_size <= len(split):
        raise ValueError(
            f"batch size must be between 1 and the {len(split)} images of the split;"
            f" got {batch_size}; change train.batch_size"
        )
    return len(split) // batch_size


# Sampler -> function (split, seed, images in an epoch) -> order.
SAMPLERS: Mapping[str, Callable[[Split, int, int], Order]] = {
    "shuffle": shuffled,
    "balanced": balanced,
}


def train_batches(
    split: Split,
    preprocessing: Preprocessing,
    augmentation: str,
    *,
    batch_size: int,
    seed: int,
    sampler: str = "shuffle",
    start_step: int = 0,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Iterates over shuffled, augmented batches without end.

    With the sampler "shuffle", every epoch is `steps_per_epoch` global batches of a new
    permutation of the split; the images left over differ from epoch to epoch. With "balanced", an
    epoch is as long, but classes take turns: the counts of any two differ by one at most. The
    images of a class come in one permutation after another, those of a small class several times
    in an epoch.

    Order and augmentation are a function of `seed` and the global step alone: the number of
    workers and the step at which a run was resumed change no pixel. Of each global batch, host p
    of P reads rows p, p + P, p + 2P and so on.

    Args:
        split: the training images.
        preprocessing: decoding and resizing; pixels are not normalised here.
        augmentation: name of a policy in `augmentation.POLICIES`.
        batch_size: images in a global batch, over all hosts.
        seed: of order and augmentation; in [0, 2**32).
        sampler: name of an order in `SAMPLERS`.
        start_step: the first batch is that of this global step, counted from 0.
        num_workers: worker processes; 0 decodes in threads of this process. Workers import the
            main module, which must therefore be guarded by `if __name__ == "__main__"`.
        process_index: this host.
        process_count: number of hosts.

    Returns:
        An iterator over {"image": uint8 (b, h, w, c), "label": int32 (b,), of a multi-label split
        float32 (b, K)} with b = batch_size / process_count; with "weight", float32 (b,), if the
        split has weights.

    Raises:
        ValueError: if the split does not fill a batch, the hosts cannot share a batch evenly,
            `augmentation`, `sampler`, `seed` or `start_step` is not allowed, or a balanced order
            is asked of a multi-label split.
    """
    local_batch_size = _local_batch_size(batch_size, process_index, process_count)
    if augmentation not in POLICIES:
        raise ValueError(f"augmentation must be one of {tuple(POLICIES)}; got {augmentation!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"the data seed must be in [0, 2**32); got {seed}")
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more; got {start_step}")
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {tuple(SAMPLERS)}; got {sampler!r}")
    order = SAMPLERS[sampler](split, seed, steps_per_epoch(split, batch_size) * batch_size)
    # Augmentation is seeded by the global row.
    rows = grain.MapDataset.source(order).seed(seed)
    rows = rows.random_map(_TrainExample(split, preprocessing, augmentation))
    rows = rows.slice(slice(start_step * batch_size + process_index, None, process_count))
    return _batches(rows, local_batch_size, num_workers)


def eval_batches(
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Iterates once over the split in order; every image counts exactly once.

    The last global batch is filled up with black images whose mask is False, so that all batches
    have one shape and all hosts the same number of steps. Of each global batch the first host reads
    the first rows, and so on; the arguments are those of `train_batches`.

    Returns:
        An iterator over {"image": uint8 (b, h, w, c), "label": as of `train_batches`, "mask": bool
        (b,)} with b = batch_size / process_count. The label of a masked image is 0.

    Raises:
        ValueError: if the split is empty or the hosts cannot share a batch evenly.
    """
    local_batch_size = _local_batch_size(batch_size, process_index, process_count)
    if len(split) == 0:
        raise ValueError("the split to evaluate holds no images")
    padded_length = -(-len(split) // batch_size) * batch_size
    shares = np.arange(padded_length).reshape(-1, process_count, local_batch_size)
    rows = grain.MapDataset.source(shares[:, process_index].ravel())
    return _batches(rows.map(_EvalExample(split, preprocessing)), local_batch_size, num_workers)


@dataclasses.dataclass(frozen=True)
class _TrainExample(grain.transforms.RandomMap):
    split: Split
    preprocessing: Preprocessing
    augmentation: str

    def random_map(self, index: int, rng: np.random.Generator) -> Batch:
        pixels, label = decoded(self.split, index, self.preprocessing)
        height, width, _ = pixels.shape
        transform = POLICIES[self.augmentation](width, height, rng)
        image = self.preprocessing.resize(pixels, transform)
        example = {"image": image, "label": _label(label)}
        if self.split.weights is not None:
            example["weight"] = self.split.weights[index]
        return example


@dataclasses.dataclass(frozen=True)
class _EvalExample(grain.transforms.Map):
    split: Split
    preprocessing: Preprocessing

    def map(self, row: int) -> Batch:
        if row >= len(self.split):
            shape = (*self.preprocessing.image_size, self.preprocessing.channels)
            return {
                "image": np.zeros(shape, np.uint8),
                "label": _label(np.zeros_like(self.split.labels[0])),
                "mask": np.bool_(False),
            }
        pixels, label = decoded(self.split, row, self.preprocessing)
        return {
            "image": self.preprocessing.resize(pixels),
            "label": _label(label),
            "mask": np.bool_(True),
        }


def _label(label: ArrayLike) -> np.ndarray:
    return np.asarray(label, np.float32 if np.ndim(label) else np.int32)


def _local_batch_size(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be in [0, {process_count}), the number of hosts;"
            f" got {process_index}"
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch size must be a positive multiple of the {process_count} hosts; got {batch_size}"
        )
    return batch_size // process_count


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Whole batches of rows in parts of at most `_PART` images, stacked.

    Threads and workers hand over parts, not images: the thread that asks for batches takes turns
    with all others at the interpreter's lock, and waits for its turn as often as it is handed
    something.
    """

    rows: grain.MapDataset
    batch_size: int

    @property
    def per_batch(self) -> int:
        return -(-self.batch_size // _PART)

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size * self.per_batch

    def __getitem__(self, index: int) -> Batch:
        batch, part = divmod(index, self.per_batch)
        first, end = (self.batch_size * p // self.per_batch for p in (part, part + 1))
        start = batch * self.batch_size
        examples = [self.rows[row] for row in range(start + first, start + end)]
        return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def _concatenated(parts: Sequence[Batch]) -> Batch:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _batches(rows: grain.MapDataset, local_batch_size: int, num_workers: int) -> BatchIterator:
    if num_workers < 0:
        raise ValueError(f"num_workers must be 0 or more; got {num_workers}")
    source = _Parts(rows, local_batch_size)
    threads = min(_MAX_READING_THREADS, usable_cpus())
    parts = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=threads * _PREFETCHED_PARTS_PER_THREAD
        )
    )
    if num_workers:
        # Grain reads absl flags when it starts workers, which fails outside `absl.app.run`.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Batches are put together after the workers: before them, each would batch its own share
        # of the parts, and the batches would depend on the number of workers.
        parts = parts.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    batches = parts.batch(source.per_batch, drop_remainder=True, batch_fn=_concatenated)
    # In the background, so that the training loop does not wait for the copying.
    batches = grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=_PREFETCHED_BATCHES
    )
    return BatchIterator(iter(batches))
