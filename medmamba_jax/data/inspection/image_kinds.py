"""Describes the kind of an image file by its header."""

import numpy as np

from medmamba_jax.data.images.decoding import parsed
from medmamba_jax.data.images.formats import format_of, kind_of


def image_kind(image: bytes | np.ndarray) -> str:
    """Returns format, depth and channels, such as "PNG, 16-bit grey", from the header alone.

    Of a file that is not an image it returns what the file is, such as "an HTML page".
    """
    try:
        return parsed(image).kind()
    except ValueError:
        if isinstance(image, np.ndarray):
            return "array, damaged"
        format = format_of(image)
        return f"{format.name}, damaged" if format and format.open else kind_of(image)
