"""Decodes one of some labelled images, and names the image that cannot be decoded."""

import numpy as np

from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.errors import UserError


class _NamedError(UserError):
    """An image cannot be decoded; the message names it already."""


def decoded(split: LabelledImages, index: int, preprocessing: Preprocessing) -> np.ndarray:
    """Reads and decodes an image; returns uint8 (h, w, channels).

    Raises:
        UserError: the image cannot be decoded; the message names it.
    """
    try:
        return preprocessing.decode(split.read(index))
    except _NamedError:
        raise
    except ValueError as error:
        raise _NamedError(f"{split.describe(index)}: {error}") from error
