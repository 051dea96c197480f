"""Reads DICOM files as 8-bit pixels, by pydicom (the extra `dicom`)."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import special

from medmamba_jax.data.images.damage import NoSuchFrameError
from medmamba_jax.data.images.windowing import Window, to_uint8
from medmamba_jax.errors import DataUnavailableError, UserError

_MAGIC_OFFSET, _MAGIC = 128, b"DICM"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_PIXEL_GROUP = 0x0028  # of tags that describe pixels
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def is_dicom(content: bytes) -> bool:
    """Whether a file begins as DICOM files do; its first 132 bytes are enough."""
    return content[_MAGIC_OFFSET : _MAGIC_OFFSET + len(_MAGIC)] == _MAGIC


class DicomFile:
    """A parsed DICOM file, which can read one frame at a time. Threads may share it.

    Args:
        content: the bytes of the file.

    Raises:
        DataUnavailableError: pydicom is not installed.
        UserError: the file is damaged.
    """

    def __init__(self, content: bytes):
        pydicom = _pydicom()
        with _explained_damage():
            self._header = pydicom.dcmread(io.BytesIO(content))

    def read(self, *, window: Window, frame: int) -> np.ndarray:
        """Decodes a frame and converts it to 8 bits by the rules of DICOM.

        It applies the modality's transformation first (RescaleSlope and RescaleIntercept, or its
        table), then the window, and then inverts MONOCHROME1, whose smallest values are white. The
        file may give each frame its own settings for these steps. 8-bit colour does not change. It
        does not apply a table of values of interest (VOI LUT) or a padding value.

        Args:
            window: "auto" is the file's first window (WindowCenter, WindowWidth, VOILUTFunction;
                PS3.3, C.11.2.1). Without one it is the frame's own range; but 8-bit pixels that
                the modality's transformation leaves unchanged do not change at all. "full" is the
                range of the stored bits. (low, high) is in the modality's units, such as
                Hounsfield.
            frame: index of the frame, counted from 0.

        Returns:
            uint8 (h, w), or (h, w, 3) for colour.

        Raises:
            UserError: the file is damaged, lacks the frame, has colour of more than 8 bits, or has
                a window that cannot be applied.
        """
        with _explained_damage():
            frames = _frames(self._header)
        if frame >= frames:
            raise NoSuchFrameError(frame, frames)
        with _explained_damage():
            stored = _pydicom().pixels.pixel_array(self._header, index=frame)
            header = _header_of_frame(self._header, frame)
            values = _values(stored, header)
            own = _file_window(header) if window == "auto" else None
        if header.PhotometricInterpretation == "PALETTE COLOR":
            return to_uint8(values, "full")
        if header.PhotometricInterpretation not in _GREY:
            if stored.dtype != np.uint8 or stored.ndim != 3:
                raise UserError(
                    f"only grey and 8-bit colour DICOM can be read; got {stored.dtype}"
                    f" {stored.shape} {header.PhotometricInterpretation}: convert it"
                )
            return stored
        if window == "full":
            grey = to_uint8(values.astype(np.float64), _full_range(header))
        elif own:
            grey = _windowed(values.astype(np.float64), *own)
        elif window == "auto" and header.BitsStored == 8 and np.array_equal(values, stored):
            grey = to_uint8(stored, "auto")
        else:
            grey = to_uint8(values.astype(np.float64), window)
        return 255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey

    def has_window(self, frame: int) -> bool | None:
        """Whether the file contains the window of a grey frame; None if the frame is not grey.

        Args:
            frame: index of the frame, counted from 0.

        Raises:
            UserError: the file is damaged.
        """
        with _explained_damage():
            if self._header.get("PhotometricInterpretation") not in _GREY:
                return None
            return _file_window(_header_of_frame(self._header, frame)) is not None

    def kind(self) -> str:
        """Returns the depth and colour in the header, such as "12-bit MONOCHROME2".

        Raises:
            UserError: the header does not name the colour.
        """
        with _explained_damage():
            bits = self._header.get("BitsStored")
            depth = "" if bits is None else f"{bits}-bit "
            return f"{depth}{self._header.PhotometricInterpretation}"


def count_dicom_frames(content: bytes) -> int:
    """Returns the number of frames, without decoding any of them.

    Raises:
        DataUnavailableError: pydicom is not installed.
        UserError: the file is damaged.
    """
    pydicom = _pydicom()
    with _explained_damage():
        return _frames(pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True))


@contextlib.contextmanager
def _explained_damage() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # for damaged files, pydicom and its decoders can raise anything
        problem = " ".join(str(error).split())
        raise UserError(f"not a DICOM image that pydicom can read: {problem}") from error


def _pydicom() -> Any:
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise DataUnavailableError(
            "DICOM files are read by pydicom, which is not installed: pip install pydicom"
        ) from error
    return pydicom


def _frames(header: Any) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _header_of_frame(header: Any, frame: int) -> Any:
    """Returns the settings of a frame's pixels, under the names that files of one frame use."""
    own = header.group_dataset(_PIXEL_GROUP)
    shared = header.get("SharedFunctionalGroupsSequence") or []
    of_frames = header.get("PerFrameFunctionalGroupsSequence") or []
    for groups in (*shared[:1], *of_frames[frame : frame + 1]):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for settings in (groups.get(name) or [])[:1]:
                own.update(settings)
    return own


def _values(stored: np.ndarray, header: Any) -> np.ndarray:
    """Applies the palette to stored pixels, or converts grey pixels to the modality's units."""
    pixels = _pydicom().pixels
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return pixels.apply_color_lut(stored, header)
    if header.PhotometricInterpretation in _GREY:
        return pixels.apply_modality_lut(stored, header)
    return stored


def _file_window(header: Any) -> tuple[float, float, str] | None:
    """Returns the file's first window: center, width and function."""
    if header.get("WindowCenter") is None or header.get("WindowWidth") is None:
        return None
    function = (header.get("VOILUTFunction") or "LINEAR").upper()
    return _first(header.WindowCenter), _first(header.WindowWidth), function


def _windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    if width <= 0 or function not in _FUNCTIONS:
        raise UserError(
            f"the file's window has the width {width:g} and the function {function}: set"
            " data.window to LOW,HIGH"
        )
    if function == "SIGMOID":
        return to_uint8(special.expit(4 * (values - center) / width), (0.0, 1.0))
    if function == "LINEAR_EXACT":
        return to_uint8(values, (center - width / 2, center + width / 2))
    half = max(width - 1, 0) / 2
    return to_uint8(values, (center - 0.5 - half, center - 0.5 + half))


def _full_range(header: Any) -> tuple[float, float]:
    levels = 2**header.BitsStored
    lowest = -levels // 2 if header.PixelRepresentation else 0
    extremes = np.array([lowest, lowest + levels - 1])
    values = _pydicom().pixels.apply_modality_lut(extremes, header)
    return float(values.min()), float(values.max())


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
