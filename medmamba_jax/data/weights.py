"""Weights of single images in the training loss."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from medmamba_jax.errors import UserError

_FLOAT32 = np.finfo(np.float32)


def are_weights(values: ArrayLike) -> np.ndarray:
    """Returns which numbers are positive and finite in float32, too; bool of the same shape."""
    # Denormal numbers are not allowed, because devices may flush them to 0.
    return (np.asarray(values) >= _FLOAT32.tiny) & (np.asarray(values) <= _FLOAT32.max)


def as_weights(
    weights: ArrayLike, count: int, what: str, describe: Callable[[int], str]
) -> np.ndarray:
    """Converts weights to the form that a split holds, float32 (n,).

    Args:
        weights: a positive, finite number for each image.
        count: n.
        what: the name of the weights in an error.
        describe: row -> name of its image in an error.

    Raises:
        UserError: the weights are not n positive, finite numbers.
    """
    weights = np.asarray(weights)
    if weights.shape != (count,) or weights.dtype.kind not in "iuf":
        raise UserError(
            f"{what} have shape {weights.shape} and dtype {weights.dtype}; give one number for each"
            f" of the {count} images, or none at all"
        )
    wrong = ~are_weights(weights)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{what} hold {weights[row]:g} for {describe(row)}; give positive, finite numbers"
            " (how much the image counts in training; 1 like most)"
        )
    return weights.astype(np.float32)
