"""Labels: one class for each image, or yes, no or unknown for every class."""

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
        wrong = ~((labels == 0) | (labels == 1) | np.isnan(labels))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise UserError(
                f"labels hold {labels[row, column]:g} for class {column} of image {row}; write 1"
                " where an image shows the class, 0 where it does not, NaN where that is not known"
            )
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


def check_labels(labels: np.ndarray, num_classes: int, what: str) -> None:
    """Checks that labels, as `as_labels` returns them, are those of so many classes.

    Args:
        labels: integers (n,), or float32 (n, K).
        num_classes: number of classes.
        what: the name of the labels in an error.

    Raises:
        UserError: K is another number, or an integer names a class that does not exist.
    """
    if labels.ndim == 2 and labels.shape[1] != num_classes:
        raise UserError(
            f"{what} have shape {labels.shape}, but a multi-label set has {num_classes} numbers an"
            " image, one for each class: 1, 0 or NaN"
        )
    if labels.ndim == 1 and labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"{what} run from {labels.min()} to {labels.max()}, but"
            f" there are {num_classes} classes (0..{num_classes - 1})"
        )


def shown_classes(labels: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Returns whether image i shows class k, bool (n, K), of labels (n,) or (n, K).

    Without `num_classes` the classes of labels (n,) end with the largest label.
    """
    if labels.ndim == 2:
        return labels == 1
    return labels[:, None] == np.arange(labels.max() + 1 if num_classes is None else num_classes)
