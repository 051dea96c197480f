"""The order in which training images are drawn: a function of a seed and the row alone."""

import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from medmamba_jax.data.dataset import Split


class Order(Protocol):
    """Row, counted over all epochs -> index into the split; without end."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> int: ...


class _Permutations:
    """One permutation after another, of each the first `taken` indices.

    They are drawn whole: index by index, by a cipher as Grain shuffles, costs 40 microseconds each
    where there are 1,800, during which no other thread runs.

    Args:
        indices: what is permuted, integers (n,).
        seed: integers of 0 or more; others give other permutations.
        taken: how many of each permutation, at most n.
    """

    def __init__(self, indices: np.ndarray, seed: Sequence[int], taken: int):
        self._indices = indices
        self._seed = tuple(seed)
        self._taken = taken
        self._drawn: Mapping[int, np.ndarray] = {}

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> int:
        turn, position = divmod(row, self._taken)
        drawn = self._drawn.get(turn)
        if drawn is None:
            drawn = np.random.default_rng((*self._seed, turn)).permutation(self._indices)
            # Threads read the last rows of a permutation beside the first of the next one.
            kept = {turn - 1: self._drawn[turn - 1]} if turn - 1 in self._drawn else {}
            self._drawn = {**kept, turn: drawn}
        return int(drawn[position])


class _Turns:
    """Takes from each of some orders in turn."""

    def __init__(self, orders: Sequence[Order]):
        self._orders = orders

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> int:
        turn, which = divmod(row, len(self._orders))
        return self._orders[which][turn]


def shuffled(split: Split, seed: int, epoch_length: int) -> Order:
    """Every epoch is a new permutation of the split, of which the end is left out."""
    return _Permutations(np.arange(len(split)), (seed,), epoch_length)


def balanced(split: Split, seed: int, epoch_length: int) -> Order:
    """Classes take turns; the images of each come in one permutation after another.

    Raises:
        ValueError: if the split is a multi-label one.
    """
    del epoch_length  # there is no permutation of the split that an epoch could end
    if split.labels.ndim > 1:
        raise ValueError(
            "the balanced order draws class by class, but an image of a multi-label set shows any"
            " number of them; use the sampler 'shuffle', and weights in the loss"
        )
    # A seed each: with one for all, the same images of classes of one size would always meet.
    classes = {label: np.flatnonzero(split.labels == label) for label in np.unique(split.labels)}
    return _Turns(
        [
            _Permutations(indices, (seed, int(label)), len(indices))
            for label, indices in classes.items()
        ]
    )
