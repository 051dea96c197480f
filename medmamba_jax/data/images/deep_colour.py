"""Reads PNG and TIFF files with 16-bit colour, by imagecodecs (the extra `colour16`).

Pillow reads such files at half their depth, or not at all.
"""

import dataclasses
import io
import logging
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    ImageFileDirectory_v2,
)

from medmamba_jax.data.images.damage import explained_damage
from medmamba_jax.data.images.signatures import png_bit_depth
from medmamba_jax.data.images.tiff import TiffFile
from medmamba_jax.data.images.windowing import Window, to_uint8
from medmamba_jax.errors import DataUnavailableError, UserError

_PNG_COLOUR_TYPE_OFFSET = 25
_PLANES_APART, _UNSIGNED = 2, 1
_ORIENTATION = ExifTags.Base.Orientation

# libpng complains about the way imagecodecs calls it. The pixels are right.
logging.getLogger("imagecodecs").addFilter(lambda log: "Interlace handl" not in log.getMessage())


@dataclasses.dataclass(frozen=True)
class DeepColour:
    """The fields of the header of an image with 16 bits a channel.

    Attributes:
        format: "PNG" or "TIFF".
        colours: number of colour channels: 1 (grey) or 3 (RGB).
        alpha: whether an alpha channel follows the colours.
        premultiplied: whether the colours are multiplied by alpha.
        apart: whether a TIFF stores its channels one after the other.
        shape: (h, w, channels) of a TIFF; None for a PNG.
        orientation: the EXIF orientation of a TIFF. None for a PNG, which may store it after its
            pixels.
    """

    format: str
    colours: int
    alpha: bool = False
    premultiplied: bool = False
    apart: bool = False
    shape: tuple[int, int, int] | None = None
    orientation: int | None = None

    def __str__(self) -> str:
        colour = "colour" if self.colours == 3 else "grey"
        return f"{self.format}, 16-bit {colour}{' with alpha' * self.alpha}"


_OF_PNG = {  # by colour type
    2: DeepColour("PNG", 3),
    4: DeepColour("PNG", 1, alpha=True),
    6: DeepColour("PNG", 3, alpha=True),
}
# By photometric interpretation, samples and extra samples. Pillow interprets 8-bit TIFFs likewise.
_OF_TIFF = {
    (1, 2, (1,)): DeepColour("TIFF", 1, alpha=True, premultiplied=True),
    (1, 2, (2,)): DeepColour("TIFF", 1, alpha=True),
    (2, 3, ()): DeepColour("TIFF", 3),
    (2, 4, ()): DeepColour("TIFF", 3, alpha=True),
    (2, 4, (0,)): DeepColour("TIFF", 3),
    (2, 4, (1,)): DeepColour("TIFF", 3, alpha=True, premultiplied=True),
    (2, 4, (2,)): DeepColour("TIFF", 3, alpha=True),
}


def find_deep_colour(image: bytes | TiffFile, frame: int = 0) -> DeepColour | None:
    """Returns the header of a frame that `read_deep_colour` can read, and None for other frames.

    Args:
        image: a TIFF, or the bytes of another file.
        frame: index of the frame, counted from 0.

    Raises:
        UserError: a TIFF lacks the frame, the header is damaged, or it announces more pixels
            than Pillow would decode.
    """
    if isinstance(image, TiffFile):
        with explained_damage(image.content):
            return _of_tiff(image.tags(frame))
    if frame or png_bit_depth(image) != 16:
        return None
    with explained_damage(image):
        return _of_png(image)


def read_deep_colour(
    content: bytes, header: DeepColour, *, window: Window, frame: int
) -> Image.Image:
    """Decodes an image at its full depth, converts it to 8 bits and turns it upright.

    All colours share one window. Alpha has no window: 0..65535 becomes 0..255.

    Args:
        content: the bytes of the file.
        header: the result of `find_deep_colour` for the file.
        window: which intensities become 0..255, see `to_uint8`.
        frame: index of the frame, counted from 0.

    Returns:
        An image of mode LA, RGB or RGBA.

    Raises:
        DataUnavailableError: imagecodecs is not installed.
        UserError: the file is damaged.
    """
    with explained_damage(content):
        pixels = _decode(content, header, frame)
        orientation = header.orientation
        if orientation is None:
            orientation = Image.open(io.BytesIO(content)).getexif().get(_ORIENTATION, 1)
    colours, alpha = pixels[..., : header.colours], pixels[..., header.colours :]
    if header.premultiplied:
        divided = colours.astype(np.uint32) * 65535 // np.maximum(alpha, 1)
        colours = np.minimum(divided, 65535).astype(np.uint16)
    channels = to_uint8(colours, window)
    if header.alpha:
        channels = np.concatenate([channels, to_uint8(alpha, "full")], axis=-1)
    image = Image.fromarray(channels)
    image.getexif()[_ORIENTATION] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _of_png(content: bytes) -> DeepColour | None:
    opened = Image.open(io.BytesIO(content), formats=("PNG",))
    if getattr(opened, "is_animated", False):
        return None
    return _OF_PNG.get(content[_PNG_COLOUR_TYPE_OFFSET])


def _of_tiff(tags: ImageFileDirectory_v2) -> DeepColour | None:
    samples, photometric = tags.get(SAMPLESPERPIXEL, 1), tags.get(PHOTOMETRIC_INTERPRETATION)
    kind: Any = (photometric, samples, tags.get(EXTRASAMPLES, ()))
    found = _OF_TIFF.get(kind)
    if {*tags.get(BITSPERSAMPLE, ())} != {16} or {*tags.get(SAMPLEFORMAT, (1,))} != {_UNSIGNED}:
        return None
    if found is None:
        return None
    height, width = tags.get(IMAGELENGTH, 0), tags.get(IMAGEWIDTH, 0)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > 2 * limit:
        raise Image.DecompressionBombError(f"{height * width} pixels, more than {2 * limit}")
    return dataclasses.replace(
        found,
        apart=tags.get(PLANAR_CONFIGURATION) == _PLANES_APART,
        shape=(height, width, samples),
        orientation=tags.get(_ORIENTATION, 1),
    )


def _decode(content: bytes, header: DeepColour, frame: int) -> np.ndarray:
    """Returns uint16 (h, w, channels)."""
    try:
        import imagecodecs
    except ModuleNotFoundError as error:
        raise DataUnavailableError(
            f"{header}, is read by imagecodecs, which is not installed: pip install imagecodecs"
        ) from error
    try:
        if header.format == "PNG":
            return imagecodecs.png_decode(content)
        pixels = imagecodecs.tiff_decode(content, frame)
    except (imagecodecs.PngError, imagecodecs.TiffError) as error:
        raise UserError(str(error)) from error
    pixels = np.moveaxis(pixels, 0, -1) if header.apart else pixels
    if pixels.shape != header.shape or pixels.dtype != np.uint16:
        raise UserError(
            f"the pixels are {pixels.dtype} {pixels.shape}, but the header announces uint16"
            f" {header.shape}"
        )
    return pixels
