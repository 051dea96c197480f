"""Naming images in messages and tables."""

from collections.abc import Sequence

import numpy as np

from medmamba_jax.data.dataset import Dataset, Split

_LISTED = 5
_BETWEEN_CLASSES = "|"


def listed(items: Sequence[object], count: int | None = None) -> str:
    """Returns the first few items as text, and the number of the others.

    Args:
        items: all items, or the first of `count` items.
        count: the number of all items; None means `len(items)`.
    """
    more = (len(items) if count is None else count) - _LISTED
    return "; ".join(map(str, items[:_LISTED])) + (f"; and {more} more" if more > 0 else "")


def short_name(split: Split, row: int) -> str:
    """Names an image without the folder that holds all images, because that folder may move."""
    return getattr(split, "name", split.describe)(row)


def label_name(dataset: Dataset, split: Split, row: int) -> str:
    """Names the class of an image; in a multi-label set all its classes, with "|" between them."""
    label = split.labels[row]
    if dataset.task == "multilabel":
        shown = np.flatnonzero(label == 1)
        return _BETWEEN_CLASSES.join(dataset.class_names[k] for k in shown)
    return dataset.class_names[label]
