"""Opens image files. A file that cannot be read at its full depth raises an error."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from medmamba_jax.data.images.damage import NoSuchFrameError, explained_damage
from medmamba_jax.data.images.deep_colour import find_deep_colour, read_deep_colour
from medmamba_jax.data.images.dicom import DicomFile, count_dicom_frames, is_dicom
from medmamba_jax.data.images.signatures import is_npy, is_tiff, png_bit_depth
from medmamba_jax.data.images.tiff import TiffFile
from medmamba_jax.data.images.windowing import Window, to_uint8
from medmamba_jax.errors import UserError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"),
    *(".npy", ".dcm", ".dicom"),
)

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_RETURNED_AS = {"1": "L", "P": "RGB", "PA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
_EIGHT_BIT_MODES = ("L", "LA", "RGB", "RGBA", *_RETURNED_AS)
_DEEP_MODES = ("I;16", "I;16B", "I", "F")
_DICOM_HEADER = 132  # bytes


def is_image_file(path: Path) -> bool:
    """Whether a file is an image, by its ending or its first bytes.

    Some DICOM files have no ending, or have a UID as their name, which ends in digits. Such a file
    is an image if it begins as DICOM files do.
    """
    suffix = path.suffix.lower()
    if suffix and not suffix[1:].isdigit():
        return suffix in IMAGE_SUFFIXES
    with path.open("rb") as file:
        return is_dicom(file.read(_DICOM_HEADER))


def open_image(
    image: bytes | np.ndarray | DicomFile | TiffFile, *, window: Window = "auto", frame: int = 0
) -> Image.Image | np.ndarray:
    """Opens and fully decodes an image, in 8 bits, turned upright by its EXIF orientation.

    It does not apply colour profiles (ICC): the pixels are those of the file.

    Args:
        image: the bytes of an image file (PNG, JPEG, TIFF, BMP, WebP, GIF, .npy or DICOM), or the
            result of `parsed` for these bytes, or an array (h, w) or (h, w, c) of any real dtype,
            with any number of channels.
        window: which intensities of an image with more than 8 bits become 0..255; see `to_uint8`,
            and `DicomFile` for DICOM. 8-bit pixels do not change.
        frame: index of the frame, counted from 0, in a DICOM file, TIFF, GIF or WebP with several.

    Returns:
        A Pillow image of mode L, LA, RGB or RGBA. Palettes (without their transparency), CMYK and
        YCbCr become RGB. An array with 1, 3 or 4 channels also becomes a Pillow image; an array
        with another number of channels becomes uint8 (h, w, c). `np.asarray` gives the pixels of
        both.

    Raises:
        DataUnavailableError: the image is DICOM and pydicom is not installed, or it has 16-bit
            colour and imagecodecs is not installed.
        UserError: the image is damaged, is not of these kinds, lacks the frame, holds NaN or
            infinity, or is of a kind that cannot be read at its full depth.
    """
    image = parsed(image)
    if isinstance(image, DicomFile):
        return Image.fromarray(image.read(window=window, frame=frame))
    if isinstance(image, np.ndarray):
        return _from_array(image, window, frame)
    if deep := find_deep_colour(image, frame):
        content = image.content if isinstance(image, TiffFile) else image
        return read_deep_colour(content, deep, window=window, frame=frame)
    opened = _load(image, frame)
    if opened.mode in _EIGHT_BIT_MODES and not _is_signed(opened):
        mode = _RETURNED_AS.get(opened.mode, opened.mode)
        return opened if mode == opened.mode else opened.convert(mode)
    return Image.fromarray(_deep_pixels(opened, window))


def parsed(
    image: bytes | np.ndarray | DicomFile | TiffFile,
) -> bytes | np.ndarray | DicomFile | TiffFile:
    """Parses a DICOM, TIFF or .npy file once, so that `open_image` need not do it for each frame.

    It returns all other images unchanged.

    Raises:
        DataUnavailableError: the file is DICOM and pydicom is not installed.
        UserError: the file is a damaged DICOM or .npy file.
    """
    if not isinstance(image, bytes):
        return image
    if is_dicom(image):
        return DicomFile(image)
    if is_npy(image):
        return load_npy(image)
    return TiffFile(image) if is_tiff(image) else image


def count_frames(image: bytes) -> int:
    """Returns the number of frames in a file that `open_image` can read; most files have one.

    Raises:
        DataUnavailableError: the file is DICOM and pydicom is not installed.
        UserError: the file is damaged or is not an image.
    """
    if is_npy(image):
        return 1
    if is_dicom(image):
        return count_dicom_frames(image)
    if is_tiff(image):
        with explained_damage(image):
            return TiffFile(image).count_frames()
    opened = open_header(image)
    with explained_damage(image):
        return getattr(opened, "n_frames", 1)


def open_header(content: bytes) -> Image.Image:
    """Opens an image file that is not .npy or DICOM, without decoding it.

    Raises:
        UserError: the header is damaged, or the file is of another kind.
    """
    with explained_damage(content):
        return Image.open(io.BytesIO(content), formats=_FORMATS)


def load_npy(content: bytes) -> np.ndarray:
    """Loads the array of a .npy file, which must hold numbers.

    Raises:
        UserError: the file is damaged or pickled.
    """
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python, so damage can raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"not a complete .npy file of numbers: {reason}") from error


def _load(image: bytes | TiffFile, frame: int) -> Image.Image:
    opened: Image.Image
    if isinstance(image, TiffFile):
        content = image.content
        with explained_damage(content):
            opened = Image.open(image.beginning_with(frame), formats=("TIFF",))
    else:
        content, opened = image, open_header(image)
    with explained_damage(content):
        if frame and image is content:
            _seek(opened, frame)
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)
    deep = deeper_than_read(content, opened)
    if deep or opened.mode not in (*_EIGHT_BIT_MODES, *_DEEP_MODES):
        raise UserError(
            f"{deep or f'an image of mode {opened.mode!r}'} cannot be read at its full depth: save"
            " it as grey or RGB, or as .npy"
        )
    return opened


def _seek(opened: Image.Image, frame: int) -> None:
    try:
        opened.seek(frame)
    except EOFError as error:
        raise NoSuchFrameError(frame, getattr(opened, "n_frames", 1)) from error


def deeper_than_read(content: bytes, opened: Image.Image) -> str | None:
    """Names the kind of a file with 16 bits a channel that Pillow would read as 8 bits.

    It returns None for files that can be read at their full depth.
    """
    if opened.mode not in _EIGHT_BIT_MODES:
        return None
    if png_bit_depth(content) == 16:
        return "animated 16-bit PNG"
    if opened.format == "TIFF" and max(_tags(opened).get(BITSPERSAMPLE, (8,))) > 8:
        return f"16-bit {opened.mode} TIFF"
    return None


def _tags(opened: Image.Image) -> Mapping[int, Any]:
    """Returns the tags of a TIFF file; Pillow's `Image` has no such attribute for other files."""
    return opened.tag_v2  # type: ignore[attr-defined]


def _is_signed(opened: Image.Image) -> bool:
    return opened.format == "TIFF" and _tags(opened).get(SAMPLEFORMAT, (1,))[0] == 2


def _deep_pixels(opened: Image.Image, window: Window) -> np.ndarray:
    """Converts one channel of 16 or 32 bits, or of 8 bits with a sign, to uint8 (h, w)."""
    tags = _tags(opened) if opened.format == "TIFF" else {}
    pixels = np.asarray(opened)
    # Pillow has no modes for signed 8 and unsigned 32 bits. It keeps the bits in another mode.
    if opened.mode == "L":
        pixels = pixels.view(np.int8)
    unsigned = tags.get(SAMPLEFORMAT, (1,))[0] == 1
    if opened.mode == "I" and tags.get(BITSPERSAMPLE) == (32,) and unsigned:
        pixels = pixels.view(np.uint32)
    grey = to_uint8(pixels, window)
    # Pillow inverts "white is zero" for unsigned 8-bit images only.
    return 255 - grey if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else grey


def _from_array(pixels: np.ndarray, window: Window, frame: int) -> Image.Image | np.ndarray:
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise UserError(
            "an image array must have the shape (h, w) or (h, w, channels) and hold pixels; got"
            f" {pixels.shape}"
        )
    if frame:
        raise NoSuchFrameError(frame, 1)
    pixels = to_uint8(pixels, window)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        return pixels
    return Image.fromarray(pixels)
