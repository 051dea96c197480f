"""What kind of file an image is, told by its header."""

import io

import numpy as np

from medmamba_jax.data.images.decoding import deeper_than_read, load_npy, open_header
from medmamba_jax.data.images.deep_colour import find_deep_colour
from medmamba_jax.data.images.dicom import has_window, is_dicom

_NPY_MAGIC = b"\x93NUMPY"
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
    """Returns format, depth and channels, such as "PNG, 16-bit grey"; pixels are not decoded."""
    if isinstance(image, np.ndarray):
        return _array_kind("array", image)
    if image.startswith(_NPY_MAGIC):
        try:
            return _array_kind("npy", load_npy(image))
        except ValueError:
            return "npy, damaged"
    if is_dicom(image):
        return _dicom_kind(image)
    try:
        if deep_colour := find_deep_colour(image):
            return str(deep_colour)
        opened = open_header(image)
    except ValueError:
        return "no image that can be opened"
    if deep := deeper_than_read(image, opened):
        return deep
    return f"{opened.format}, {_MODES.get(opened.mode, opened.mode)}"


def _dicom_kind(content: bytes) -> str:
    import pydicom  # what reads the pixels has said if it is not there

    try:
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        window = {True: " with a window", False: " without a window"}.get(has_window(content), "")
        return f"DICOM, {header.BitsStored}-bit {header.PhotometricInterpretation}{window}"
    except Exception:  # pydicom raises anything for damaged files
        return "DICOM, damaged"


def _array_kind(what: str, pixels: np.ndarray) -> str:
    channels = 1 if pixels.ndim < 3 else pixels.shape[-1]
    return f"{what}, {pixels.dtype}, {channels} channel{'s' if channels > 1 else ''}"
