"""The order of the training images: an endless stream that depends on the seed and the row.

`SAMPLERS` is the only list of orders. To add one, assign a `Sampler` to a new name in it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from medmamba_jax.data.labelled_images import TASKS, LabelledImages
from medmamba_jax.errors import UserError

# Function: global row, counted from 0 over all epochs -> index into the split. Threads call it
# concurrently. The same row must always give the same index, because a resumed run relies on that.
Order = Callable[[int], int]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One way of drawing training images.

    Attributes:
        order: function (split, seed) -> order of the split's images, with a seed in [0, 2**32). The
            order is pickled for the worker processes.
        text: a description in a few words; a run prints it before it starts.
        tasks: the tasks of the data sets that it supports; see `LabelledImages.task`.
    """

    order: Callable[[LabelledImages, int], Order]
    text: str
    tasks: tuple[str, ...] = TASKS


def sampler_for(name: str, task: str) -> Sampler:
    """Returns a sampler by name.

    Args:
        name: key of `SAMPLERS`.
        task: the data set's task.

    Raises:
        UserError: no sampler has this name, or it cannot draw from a data set with this task.
    """
    if name not in SAMPLERS:
        raise UserError(f"sampler must be one of {tuple(SAMPLERS)}; got {name!r}")
    if task not in SAMPLERS[name].tasks:
        shown = {"multilabel": "any number of classes", "multiclass": "exactly one class"}[task]
        fitting = [other for other, sampler in SAMPLERS.items() if task in sampler.tasks]
        raise UserError(
            f"the sampler {name!r} ({SAMPLERS[name].text}) is not for a {task} data set, whose"
            f" images show {shown} each; use one of {fitting}, and weights in the loss"
        )
    return SAMPLERS[name]


class _Permutations:
    """One random permutation after another, without end.

    NumPy draws each permutation as a whole. Grain's shuffle would compute each index with a cipher.
    For 1,800 images this takes 40 microseconds an index, in which no other thread runs.

    Args:
        indices: the values to permute, integers (n,); n is 1 or more.
        seed: integers, 0 or more; another seed gives unrelated permutations.
    """

    def __init__(self, indices: np.ndarray, seed: Sequence[int]):
        self._indices = indices
        self._seed = tuple(seed)
        self._drawn: Mapping[int, np.ndarray] = {}

    def __call__(self, row: int) -> int:
        turn, position = divmod(row, len(self._indices))
        drawn = self._drawn.get(turn)
        if drawn is None:
            drawn = np.random.default_rng((*self._seed, turn)).permutation(self._indices)
            # Some threads may still read the end of one permutation while others begin the next.
            before = self._drawn.get(turn - 1)  # once, because other threads replace `_drawn`
            kept = {} if before is None else {turn - 1: before}
            self._drawn = {**kept, turn: drawn}
        return int(drawn[position])


@dataclasses.dataclass(frozen=True)
class _Turns:
    """Takes one row from each of several orders in turn."""

    orders: Sequence[Order]

    def __call__(self, row: int) -> int:
        turn, which = divmod(row, len(self.orders))
        return self.orders[which](turn)


def shuffled(split: LabelledImages, seed: int) -> Order:
    """Draws all images in random order, then all images again in another order, and so on."""
    return _Permutations(np.arange(len(split)), (seed,))


def balanced(split: LabelledImages, seed: int) -> Order:
    """Draws from each class in turn; within a class, one permutation of its images follows another.

    So the counts of two classes never differ by more than 1. A class without images is left out.
    """
    # Each class has its own seed. With one seed for all, classes of the same size would have the
    # same permutation, and the same images would always be in a batch together.
    return _Turns(
        [
            _Permutations(np.flatnonzero(split.labels == label), (seed, int(label)))
            for label in np.unique(split.labels)
        ]
    )


SAMPLERS: dict[str, Sampler] = {
    "shuffle": Sampler(shuffled, "shuffled"),
    "balanced": Sampler(balanced, "classes equally often", tasks=("multiclass",)),
}
