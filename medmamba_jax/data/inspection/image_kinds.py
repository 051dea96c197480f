"""Describes the kind of an image file by its header."""

import numpy as np

from medmamba_jax.data.images.decoding import deeper_than_read, open_header, parsed
from medmamba_jax.data.images.deep_colour import find_deep_colour
from medmamba_jax.data.images.dicom import DicomFile
from medmamba_jax.data.images.signatures import is_npy

_WINDOWS = {True: " with a window", False: " without a window", None: ""}
_MODES = {
    "1": "1-bit",
    "L": "8-bit grey",
    "LA": "8-bit grey with alpha",
    "P": "palette",
    "PA": "palette with alpha",
    "RGB": "8-bit colour",
    "RGBA": "8-bit colour with alpha",
    "CMYK": "8-bit CMYK",
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey",
    "I": "32-bit grey",
    "F": "floating point",
}


def image_kind(image: bytes | np.ndarray) -> str:
    """Returns format, depth and channels, such as "PNG, 16-bit grey", from the header alone."""
    if isinstance(image, np.ndarray):
        return _array_kind("array", image)
    try:
        file = parsed(image)
    except ValueError:
        return f"{'npy' if is_npy(image) else 'DICOM'}, damaged"
    if isinstance(file, np.ndarray):
        return _array_kind("npy", file)
    try:
        if isinstance(file, DicomFile):
            return f"DICOM, {file.kind()}{_WINDOWS[file.has_window(0)]}"
        if deep_colour := find_deep_colour(file):
            return str(deep_colour)
        opened = open_header(image)
    except ValueError:
        return "DICOM, damaged" if isinstance(file, DicomFile) else "no image that can be opened"
    if deep := deeper_than_read(image, opened):
        return deep
    return f"{opened.format}, {_MODES.get(opened.mode, opened.mode)}"


def _array_kind(what: str, pixels: np.ndarray) -> str:
    channels = 1 if pixels.ndim < 3 else pixels.shape[-1]
    return f"{what}, {pixels.dtype}, {channels} channel{'s' if channels > 1 else ''}"
