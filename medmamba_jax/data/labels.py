"""Labels: one class for each image, or yes, no or unknown for every class."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from medmamba_jax.errors import UserError

_UNKNOWN = -1  # integers have no NaN


def as_labels(labels: ArrayLike) -> np.ndarray:
    """Converts labels to the form that a split holds.

    Args:
        labels: integers (n,), the class of each image; or numbers (n, K): 1 where image i shows
            class k, 0 where it does not, NaN or -1 where that is not known.

    Returns:
        Integers (n,), or float32 (n, K) with NaN where it is not known whether the image shows the
        class.

    Raises:
        UserError: the labels have neither form.
    """
    try:
        labels = np.asarray(labels)
    except ValueError:
        raise UserError("labels must have equally many entries for every image") from None
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return labels
    if labels.ndim == 2 and labels.dtype.kind in "iufb":
        labels = labels.astype(np.float32)
        labels[labels == _UNKNOWN] = np.nan
        _check_values(labels, "labels", "image {}".format)
        return labels
    if labels.ndim == 1 and labels.dtype.kind == "f" and np.isnan(labels).any():
        raise UserError(
            f"the label of image {np.isnan(labels).argmax()} is NaN: where every image has one"
            " class, leave out the images whose class is not known"
        )
    raise UserError(
        "labels must be a vector of integers, or a table (images, classes) of 1, 0 and NaN;"
        f" got shape {labels.shape}, dtype {labels.dtype}"
    )


def check_multiclass(labels: np.ndarray, num_classes: int, what: str) -> None:
    """Checks that labels give each image exactly one class.

    Args:
        labels: they should be integers (n,).
        num_classes: number of classes.
        what: the name of the labels in an error.

    Raises:
        UserError: the labels are not integers (n,), or name a class that does not exist.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{what} have shape {labels.shape} and dtype {labels.dtype}, but a multi-class set has"
            " one integer an image: give that, or say task='multilabel'"
        )
    if labels.size and not (0 <= labels.min() and labels.max() < num_classes):
        raise UserError(
            f"{what} run from {labels.min()} to {labels.max()}, but"
            f" there are {num_classes} classes (0..{num_classes - 1})"
        )


def check_multilabel(
    labels: np.ndarray, num_classes: int, what: str, describe: Callable[[int], str]
) -> None:
    """Checks that labels give each image yes, no or unknown for every class.

    Args:
        labels: they should be 1, 0 and NaN, (n, K).
        num_classes: K.
        what: the name of the labels in an error.
        describe: row -> name of its image in an error.

    Raises:
        UserError: the labels have another shape or dtype, or another value than 1, 0 and NaN.
    """
    if labels.ndim != 2 or labels.shape[1] != num_classes or labels.dtype.kind not in "iufb":
        raise UserError(
            f"{what} have shape {labels.shape} and dtype {labels.dtype}, but a multi-label set has"
            f" {num_classes} numbers an image, one for each class: 1, 0 or NaN"
        )
    _check_values(labels, what, describe)


def shown_classes(labels: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Returns whether image i shows class k, bool (n, K), of labels (n,) or (n, K).

    Without `num_classes` the classes of labels (n,) end with the largest label.
    """
    if labels.ndim == 2:
        return labels == 1
    return labels[:, None] == np.arange(labels.max() + 1 if num_classes is None else num_classes)


def _check_values(labels: np.ndarray, what: str, describe: Callable[[int], str]) -> None:
    wrong = ~((labels == 0) | (labels == 1) | np.isnan(labels))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(
            f"{what} hold {labels[row, column]:g} for class {column} of {describe(row)}; write 1"
            " where an image shows the class, 0 where it does not, NaN where that is not known"
        )
