"""Batches of images. Grain reads them in an order that depends only on the seed and the step."""

import dataclasses
import functools
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence, Sized

import grain
import numpy as np
from absl import flags, logging
from numpy.typing import ArrayLike

from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.images.augmentation import POLICIES, Policy
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.reading.memory import Blocks, return_large_blocks
from medmamba_jax.data.reading.order import Order, sampler_for
from medmamba_jax.data.reading.store import decoded
from medmamba_jax.errors import UserError

Batch = dict[str, np.ndarray]

_MAX_READING_THREADS = 16
_PREFETCHED_PARTS_PER_THREAD = 2
_PREFETCHED_BATCHES = 2
_PART = 16  # images
_LOOK_AFTER_PARENT = 1.0  # seconds


class BatchIterator(Iterator[Batch]):
    """Iterates over batches. `close` ends its threads and worker processes.

    Use it as a context manager, or call `close`. The end of the program also closes it.
    """

    def __init__(self, batches: grain.DatasetIterator):
        self._open = [batches]
        self._finalizer = weakref.finalize(self, _close, self._open)

    def __next__(self) -> Batch:
        if not self._open:
            raise UserError("the batch iterator is closed")
        return next(self._open[0])

    def close(self) -> None:
        """Ends threads and workers. It may be called again; `next` then raises UserError."""
        self._finalizer()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _close(batches: list[grain.DatasetIterator]) -> None:
    # The list must not keep the iterator: Grain's iterators close themselves again when Python
    # deletes them, which prints errors if the interpreter is already shutting down.
    while batches:
        batches.pop().close()


def steps_per_epoch(split: Sized, batch_size: int) -> int:
    """Returns the number of global batches in an epoch: ceil(images / batch size).

    All of them are full batches; `train_batches` describes how the last one is filled.

    Raises:
        UserError: the split holds no images, or the batch size is less than 1.
    """
    if batch_size < 1:
        raise UserError(f"the batch size must be 1 or more; got {batch_size}")
    _require_images(split)
    return -(-len(split) // batch_size)


def batch_larger_than_set(split: Sized, batch_size: int) -> str | None:
    """Returns a warning if a global batch holds more images than the split, else None."""
    if batch_size <= len(split):
        return None
    return (
        f"a batch of {batch_size} is larger than the training set of {len(split)} images, so each"
        " batch holds images more than once; consider a smaller train.batch_size"
    )


def train_batches(
    split: LabelledImages,
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
    """Iterates over augmented batches of training images, without end.

    The images come in one endless stream, and global step s takes its rows s * batch_size to
    (s + 1) * batch_size - 1. An epoch is `steps_per_epoch` whole batches. With the sampler
    "shuffle" the stream is one permutation of the split after another. The beginning of the next
    permutation fills the last batch of an epoch, and the next epoch continues from there. So after
    k epochs every image has been drawn k times or more, and the counts of two images differ by at
    most 1. With "balanced" the classes take turns, and the images of each class come in one
    permutation after another.

    The order and the augmentation depend only on the seed and the global row. The number of workers
    and of hosts, and the step at which a run resumes, do not change any pixel or its place in the
    global batch. The first host reads the first b rows of each global batch, the second host reads
    the next b rows, and so on.

    A batch may be larger than the split; then a warning reports that images repeat within a batch.

    Args:
        split: the training images.
        preprocessing: how images are decoded and resized. Batches are not normalised.
        augmentation: name of a policy in `augmentation.POLICIES`.
        batch_size: images in a global batch, over all hosts.
        seed: seed of order and augmentation, in [0, 2**32).
        sampler: name of a sampler in `order.SAMPLERS`.
        start_step: the global step of the first batch, counted from 0.
        num_workers: worker processes; 0 decodes in threads of this process. Workers import the
            main module, so the main module needs the guard `if __name__ == "__main__"`.
        process_index: index of this host.
        process_count: number of hosts.

    Returns:
        An iterator of dictionaries (`Batch`): {"image": uint8 (b, h, w, c), "label": int32 (b,), or
        float32 (b, K) of a multi-label split}, with b = batch_size / process_count. If the split
        has weights, each dictionary also has "weight": float32 (b,).

    Raises:
        UserError: the split holds no images, the hosts cannot share a batch evenly, `seed`,
            `start_step` or `num_workers` is out of range, no policy or sampler has this name, or
            the sampler is not for labels of this kind.
    """
    local_batch_size = _local_batch_size(batch_size, process_index, process_count)
    _require_images(split)
    if augmentation not in POLICIES:
        raise UserError(f"augmentation must be one of {tuple(POLICIES)}; got {augmentation!r}")
    if not 0 <= seed < 2**32:
        raise UserError(f"the data seed must be in [0, 2**32); got {seed}")
    if start_step < 0:
        raise UserError(f"start_step must be 0 or more; got {start_step}")
    order = sampler_for(sampler, split.task).order(split, seed)
    if warning := batch_larger_than_set(split, batch_size):
        logging.warning("%s", warning)
    # Grain seeds the generator of each row by the row's number in this endless range.
    rows = grain.MapDataset.range(sys.maxsize).seed(seed)
    rows = rows.random_map(_TrainExample(split, order, preprocessing, POLICIES[augmentation]))
    first = start_step * batch_size + process_index * local_batch_size
    return _batches(_Parts(rows, local_batch_size, batch_size, first), num_workers)


def eval_batches(
    split: LabelledImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Iterates once over the split, in order. Every image comes exactly once.

    Black images with a mask of False fill the last global batch, so that all batches have the same
    shape and all hosts take the same number of steps. The first host reads the first b rows of each
    global batch, the second host reads the next b rows, and so on.

    Args:
        split: the images.
        preprocessing: how images are decoded and resized. Batches are not normalised.
        batch_size: images in a global batch, over all hosts.
        num_workers: worker processes; see `train_batches`.
        process_index: index of this host.
        process_count: number of hosts.

    Returns:
        An iterator of dictionaries (`Batch`): {"image": uint8 (b, h, w, c), "label": as in
        `train_batches`, "mask": bool (b,)}, with b = batch_size / process_count. The label of a
        masked image is 0.

    Raises:
        UserError: the split holds no images, the hosts cannot share a batch evenly, or
            `num_workers` is negative.
    """
    local_batch_size = _local_batch_size(batch_size, process_index, process_count)
    _require_images(split)
    padded_length = -(-len(split) // batch_size) * batch_size
    rows = grain.MapDataset.range(padded_length).map(_EvalExample(split, preprocessing))
    first = process_index * local_batch_size
    return _batches(_Parts(rows, local_batch_size, batch_size, first), num_workers)


@dataclasses.dataclass(frozen=True)
class _TrainExample(grain.transforms.RandomMap):
    """Global row -> augmented example.

    It holds the functions of the policy and the order, not their names, because a worker process
    does not have the entries that the user's script has added to the tables.
    """

    split: LabelledImages
    order: Order
    preprocessing: Preprocessing
    policy: Policy

    def random_map(self, row: int, rng: np.random.Generator) -> Batch:
        index = self.order(row)
        pixels = decoded(self.split, index, self.preprocessing)
        height, width, _ = pixels.shape
        image = self.preprocessing.resize(pixels, self.policy(width, height, rng))
        example = {"image": image, "label": _label(self.split.labels[index])}
        if self.split.weights is not None:
            example["weight"] = self.split.weights[index]
        return example


@dataclasses.dataclass(frozen=True)
class _EvalExample(grain.transforms.Map):
    """Row -> example; a row beyond the end of the split is a masked, black image."""

    split: LabelledImages
    preprocessing: Preprocessing

    def map(self, row: int) -> Batch:
        shown = row < len(self.split)
        if shown:
            label = self.split.labels[row]
            image = self.preprocessing.resize(decoded(self.split, row, self.preprocessing))
        else:
            label = np.zeros_like(self.split.labels[0])
            shape = (*self.preprocessing.image_size, self.preprocessing.channels)
            image = np.zeros(shape, np.uint8)
        return {"image": image, "label": _label(label), "mask": np.asarray(shown)}


def _label(label: ArrayLike) -> np.ndarray:
    return np.asarray(label, np.float32 if np.ndim(label) else np.int32)


def _require_images(split: Sized) -> None:
    if len(split) == 0:
        raise UserError("the split holds no images; it needs at least one")


def _local_batch_size(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise UserError(
            f"process_index must be in [0, {process_count}), the number of hosts;"
            f" got {process_index}"
        )
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch size must be a positive multiple of the {process_count} hosts; got {batch_size}"
        )
    return batch_size // process_count


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Stacked parts of this host's whole batches; a part holds at most `_PART` images.

    Batch i of this host is the `batch_size` rows from row `first + i * global_batch_size` on.

    Threads and workers pass on parts instead of single images. The thread that requests batches
    competes with all other threads for the interpreter's lock, and it waits for the lock each time
    it receives an item.
    """

    rows: grain.MapDataset
    batch_size: int
    global_batch_size: int
    first: int
    blocks: Blocks = dataclasses.field(default_factory=Blocks)

    @property
    def per_batch(self) -> int:
        return -(-self.batch_size // _PART)

    def __len__(self) -> int:
        end = self.first + self.batch_size
        batches = (len(self.rows) - end) // self.global_batch_size + 1
        return batches * self.per_batch

    def __getitem__(self, index: int) -> Batch:
        batch, part = divmod(index, self.per_batch)
        first, end = (self.batch_size * p // self.per_batch for p in (part, part + 1))
        start = self.first + batch * self.global_batch_size
        examples = [self.rows[row] for row in range(start + first, start + end)]
        return {
            key: self.blocks.stack([example[key] for example in examples]) for key in examples[0]
        }


def _concatenated(parts: Sequence[Batch], blocks: Blocks) -> Batch:
    return {key: blocks.concatenate([part[key] for part in parts]) for key in parts[0]}


def _batches(source: _Parts, num_workers: int) -> BatchIterator:
    if num_workers < 0:
        raise UserError(f"num_workers must be 0 or more; got {num_workers}")
    return_large_blocks()
    threads = min(_MAX_READING_THREADS, usable_cpus())
    parts = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=threads * _PREFETCHED_PARTS_PER_THREAD
        )
    )
    if num_workers:
        _let_grain_read_its_flags()
        # Parts are joined to batches outside the workers. If each worker joined its own parts, the
        # batches would depend on the number of workers.
        parts = parts.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=_end_with_parent
        )
    join = functools.partial(_concatenated, blocks=source.blocks)
    batches = parts.batch(source.per_batch, drop_remainder=True, batch_fn=join)
    # A background thread joins the parts, so that the training loop need not wait for that. The
    # class is experimental; it was checked with Grain 0.2.18. Outside `grain.experimental`, that
    # release prefetches only the output of workers or of a `MapDataset`, not the output of `batch`.
    batches = grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=_PREFETCHED_BATCHES
    )
    return BatchIterator(iter(batches))


def _end_with_parent(index: int, count: int) -> None:
    """Lets a worker ignore signals that ask the whole run to stop, and end with its parent.

    A terminal and a cluster send these signals to every process of a run. The parent needs batches
    until it has finished its step and saved a checkpoint. Then it ends the workers.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # Windows lacks some
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_AFTER_PARENT)
    os._exit(1)  # the parent was killed


def _let_grain_read_its_flags() -> None:
    """Lets Grain read its own absl flags in a program that has not parsed any.

    Grain 0.2.18 reads the flag `grain_enable_multiprocess_worker_profiling` when it starts workers
    and JAX is installed. Until a program has parsed its flags, absl raises an error for every read
    of a flag that is not marked as present on the command line. So this function marks Grain's
    flags as present; Grain itself does the same in its workers. The flags keep their default
    values. The flags of the user's program do not change, and the program may still parse all flags
    later.
    """
    if not flags.FLAGS.is_parsed():
        for name in flags.FLAGS:
            if name.startswith("grain_"):
                flags.FLAGS[name].present = max(flags.FLAGS[name].present, 1)
