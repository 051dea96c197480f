"""Selects the images of a run before they are split: without excluded ones, or only some."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.labels import shown_classes
from medmamba_jax.data.naming import listed
from medmamba_jax.data.texts import read_text
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import expanded


def selected_rows(
    names: Sequence[str], labels: np.ndarray, config: DataConfig, splits: np.ndarray | None = None
) -> np.ndarray:
    """Returns the rows of the images that `config.exclude` and `config.subset` leave.

    A subset draws images, not patients. The images that are drawn keep their patients, so that a
    split still keeps the images of a patient together.

    Args:
        names: the names of the images (n,).
        labels: integers (n,), or (n, K) where 1 means that the image shows the class.
        config: the settings.
        splits: the split of each image (n,), if it is known. The subset then has each split in
            proportion.

    Returns:
        Ascending rows.

    Raises:
        FileNotFoundError: the file `config.exclude` does not exist.
        UserError: no image is left, or the subset is smaller than the number of classes.
    """
    rows = np.arange(len(names))
    if config.exclude:
        excluded = _excluded(expanded(config.exclude), names)
        rows = np.flatnonzero([name not in excluded for name in names])
        if not len(rows):
            raise UserError(f"{config.exclude} excludes all {len(names)} images: leave some")
    if config.subset_of is None:
        return rows
    number, of_each = config.subset_of
    _warn_of_few(labels[rows], config.subset, number, of_each)
    order = np.random.default_rng(config.split_seed).permutation(rows)
    if splits is not None:  # the images of every split come at equal distances
        place = np.empty(len(order))
        for split in np.unique(splits[order]):
            here = splits[order] == split
            place[here] = (np.arange(here.sum()) + 0.5) / here.sum()
        order = order[np.argsort(place, kind="stable")]
    drawn = _of_each(labels[order], number) if of_each else _in_proportion(labels[order], number)
    return np.sort(order[drawn])


def _warn_of_few(labels: np.ndarray, subset: str, number: int, of_each: bool) -> None:
    """Warns if there are fewer images, or fewer of a class, than the subset asks for."""
    counts = shown_classes(labels).sum(0)
    sizes = counts[counts > 0] if of_each else np.array([len(labels)])
    if (few := sizes[sizes < number]).size:
        logging.warning(
            "data.subset=%s asks for more images than there are%s: the subset has all of them",
            subset,
            f" in {len(few)} of {len(sizes)} classes (the smallest has {few.min()})"
            if of_each
            else f" ({len(labels)})",
        )


def _excluded(path: Path, names: Sequence[str]) -> set[str]:
    if not path.is_file():
        raise MissingFileError(f"no file {path}: set data.exclude to a list of images")
    excluded = {line.strip() for line in read_text(path).splitlines()} - {""}
    unknown = sorted(excluded.difference(names))
    if unknown:
        logging.warning(
            "%s names %d images that are not there: %s", path, len(unknown), listed(unknown)
        )
    return excluded


def _of_each(labels: np.ndarray, number: int) -> np.ndarray:
    """Whether each image is among the first ones that are needed to have `number` of each class.

    In a multi-label set, images without any class count as a class of their own.
    """
    shown = shown_classes(labels)
    if labels.ndim == 2:
        shown = np.column_stack([shown, ~shown.any(1)])
    have = np.zeros(shown.shape[1], int)
    drawn = np.zeros(len(labels), bool)
    for row, classes in enumerate(shown):
        if (have[classes] < number).any():
            have += classes
            drawn[row] = True
    return drawn


def _in_proportion(labels: np.ndarray, number: int) -> np.ndarray:
    """Whether each image is among the first ones of its class, `number` images in all.

    Each class has at least one image, and otherwise its share by the largest remainder. In a
    multi-label set the first images of all are taken.
    """
    if number >= len(labels) or labels.ndim == 2:
        return np.arange(len(labels)) < number
    _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if number < len(counts):
        raise UserError(f"data.subset={number} is less than the {len(counts)} classes")
    shares = counts * number / len(labels)
    quota = np.maximum(1, np.floor(shares)).astype(int)
    while quota.sum() != number:
        more = quota.sum() < number
        free = quota < counts if more else quota > 1
        lack = np.where(free, shares - quota, -np.inf if more else np.inf)
        quota[lack.argmax() if more else lack.argmin()] += 1 if more else -1
    drawn = np.zeros(len(labels), bool)
    for label, count in enumerate(quota):
        drawn[np.flatnonzero(class_of == label)[:count]] = True
    return drawn
