"""Naming images in messages and tables."""

from collections.abc import Sequence

import numpy as np

from medmamba_jax.data.dataset import Dataset, Split

_LISTED = 5
_BETWEEN_CLASSES = "|"


def listed(items: Sequence[object], count: int | None = None) -> str:
    """Returns the first few of some items as text, and how many more there are.

    Args:
        items: all of them, or the first of `count`.
        count: how many there are; as many as `items` if None.
    """
    more = (len(items) if count is None else count) - _LISTED
    return "; ".join(map(str, items[:_LISTED])) + (f"; and {more} more" if more > 0 else "")


def short_name(split: Split, row: int) -> str:
    """Names an image without the folder that all lie in, which may move."""
    return getattr(split, "name", split.describe)(row)


def label_name(dataset: Dataset, split: Split, row: int) -> str:
    """Names the class of an image; of a multi-label set all that it shows, with "|" between."""
    label = split.labels[row]
    if dataset.task == "multilabel":
        shown = np.flatnonzero(label == 1)
        return _BETWEEN_CLASSES.join(dataset.class_names[k] for k in shown)
    return dataset.class_names[label]
