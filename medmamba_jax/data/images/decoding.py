"""Opens image files and arrays. A file that cannot be read at its full depth raises an error."""

import numpy as np

from medmamba_jax.data.images.arrays import ArrayFile
from medmamba_jax.data.images.formats import format_of, kind_of
from medmamba_jax.data.images.image_file import (
    MAX_PIXELS,
    ImageFile,
    Picture,
    explained_damage,
    raise_limit_of_pillow,
)
from medmamba_jax.data.images.windowing import Window
from medmamba_jax.errors import UserError


def open_image(
    image: bytes | np.ndarray | ImageFile,
    *,
    window: Window = "auto",
    frame: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> Picture:
    """Opens and fully decodes an image, in 8 bits, turned upright by its EXIF orientation.

    It does not apply colour profiles (ICC): the pixels are those of the file.

    Args:
        image: the bytes of an image file of a kind in `formats.FORMATS`, or the result of `parsed`
            for these bytes, or an array (h, w) or (h, w, c) of any real dtype, with any number of
            channels.
        window: which intensities of an image with more than 8 bits become 0..255; see `to_uint8`,
            and `DicomFile` for DICOM. 8-bit pixels do not change.
        frame: index of the frame, counted from 0, in a file with several, such as DICOM, TIFF or
            GIF; in a NIfTI file, index of the slice.
        max_pixels: the most pixels (height times width) of a frame in a file. A file whose header
            announces more is refused before it is decoded.

    Returns:
        A Pillow image of mode L, LA, RGB or RGBA. Palettes (without their transparency), CMYK and
        YCbCr become RGB. An array with 1, 3 or 4 channels also becomes a Pillow image; an array
        with another number of channels becomes uint8 (h, w, c). `np.asarray` gives the pixels of
        both.

    Raises:
        DataUnavailableError: the package that reads such files is not installed.
        UserError: the image is damaged, is not of these kinds, lacks the frame, has more pixels
            than `max_pixels`, holds NaN or infinity, or is of a kind that cannot be read at its
            full depth.
    """
    raise_limit_of_pillow(max_pixels)
    return parsed(image).read(window=window, frame=frame, max_pixels=max_pixels)


def parsed(image: bytes | np.ndarray | ImageFile) -> ImageFile:
    """Parses the header of an image once, so that `open_image` need not do it for each frame.

    Raises:
        DataUnavailableError: the package that reads such files is not installed.
        UserError: the file is damaged, or is not an image that can be read; the message names what
            it is.
    """
    if isinstance(image, ImageFile):
        return image
    if isinstance(image, np.ndarray):
        return ArrayFile(image)
    format, size = format_of(image), f"{len(image)} bytes"
    if format is None:
        raise UserError(f"not an image file, but {kind_of(image)} ({size})")
    if format.open is None:
        raise UserError(
            f"not an image file that can be read, but {format.name} ({size}): {format.remedy}"
        )
    with explained_damage():
        return format.open(image)
