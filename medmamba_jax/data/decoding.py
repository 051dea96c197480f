"""Opening an image without losing anything in silence."""

import io
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH_OFFSET = 24


def open_image(image: bytes | np.ndarray) -> Image.Image:
    """Opens and fully decodes an image, turned upright by its EXIF orientation.

    Args:
        image: the bytes of an image file, or a uint8 array (h, w), (h, w, 1), (h, w, 3) or
            (h, w, 4).

    Returns:
        An 8-bit Pillow image in the mode of the file.

    Raises:
        ValueError: if the bytes are no complete image, or if the image has more than 8 bits per
            channel: which window of the intensities to keep is the user's decision.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    try:
        opened = Image.open(io.BytesIO(image))
        opened.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"not an image file ({len(image)} bytes)") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image is too large to be decoded safely: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        # Pillow's decoders raise any of these for damaged files.
        raise ValueError(f"not a complete image file ({len(image)} bytes): {error}") from error
    # Pillow reads PNG with 16 bits per colour as 8 bits without a word.
    sixteen_bit_png = image[:8] == _PNG_SIGNATURE and image[_PNG_BIT_DEPTH_OFFSET] == 16
    if sixteen_bit_png or opened.mode not in _EIGHT_BIT_MODES:
        kind = "16-bit PNG" if sixteen_bit_png else f"mode {opened.mode!r}"
        raise ValueError(f"only images with 8 bits per channel can be read; got {kind}: convert it")
    return ImageOps.exif_transpose(opened)


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    valid_shape = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not valid_shape:
        raise ValueError(
            "an image array must be uint8 with shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4);"
            f" got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(pixels)
