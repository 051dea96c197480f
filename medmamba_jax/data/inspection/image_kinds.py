"""Describes the kind of an image file by its header."""

import numpy as np

from medmamba_jax.data.images.decoding import parsed
from medmamba_jax.data.images.formats import kind_of


def image_kind(image: bytes | np.ndarray) -> str:
    """Returns format, depth and channels, such as "PNG, 16-bit grey", from the header alone."""
    try:
        return parsed(image).kind()
    except ValueError:
        return f"{'array' if isinstance(image, np.ndarray) else kind_of(image)}, damaged"
