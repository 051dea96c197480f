"""Reads what Pillow reads exactly: files of 8 bits, and 16-bit grey PNG."""

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps, features

from medmamba_jax.data.images.decoders import decoder
from medmamba_jax.data.images.image_file import (
    ImageFile,
    Picture,
    integer_range,
    rendered,
    require_size,
)
from medmamba_jax.data.images.windowing import Window
from medmamba_jax.errors import DataUnavailableError, UserError

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "AVIF")
_RETURNED_AS = {"1": "L", "P": "RGB", "PA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
_GREY_16 = ("I;16", "I;16B", "I")
_NAMES = {
    "1": "1-bit",
    "L": "8-bit grey",
    "LA": "8-bit grey with alpha",
    "P": "palette",
    "PA": "palette with alpha",
    "RGB": "8-bit colour",
    "RGBA": "8-bit colour with alpha",
    "CMYK": "8-bit CMYK",
    **dict.fromkeys(_GREY_16, "16-bit grey"),
}

# Pillow warns of images of half the size that it refuses. `data.max_pixels` decides about them, and
# its message says what to do. `warnings.catch_warnings` would not be safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class PillowFile(ImageFile):
    """A file of a format that Pillow reads exactly."""

    def __init__(self, content: bytes):
        super().__init__(content)
        self._opened: Image.Image | None = None
        self._count: int | None = None

    def _frames(self) -> int:
        if self._count is None:
            self._count = getattr(self._open(), "n_frames", 1)
        return self._count

    def _kind(self) -> str:
        opened = self._open()
        return f"{opened.format}, {_NAMES.get(opened.mode, opened.mode)}"

    def _read(self, window: Window, frame: int, max_pixels: int) -> Picture:
        with self._lock:
            # An opened file knows the places of the frames that it has passed.
            opened = self._opened if self._opened is not None and frame else self._open()
            if frame:
                opened.seek(frame)
            require_size(opened.height, opened.width, max_pixels)
            self._require_exact(opened)
            # PhotometricInterpretation, which Pillow heeds in a TIFF of 8 bits only
            inverted = getattr(opened, "tag_v2", {}).get(262) == 0
            opened.load()
            if frame:
                self._opened, opened = opened, opened.copy()
            ImageOps.exif_transpose(opened, in_place=True)
            if opened.mode in _GREY_16:
                pixels, full = np.asarray(opened), integer_range(16)
                return rendered(pixels, window, full=full, inverted=inverted)
            opened.info.pop("transparency", None)  # of a palette, about which Pillow would warn
            mode = _RETURNED_AS.get(opened.mode, opened.mode)
            return opened if mode == opened.mode else opened.convert(mode)

    def _open(self) -> Image.Image:
        return Image.open(io.BytesIO(self.content), formats=_FORMATS)

    def _require_exact(self, opened: Image.Image) -> None:
        """Raises UserError for a frame of this format that Pillow does not read exactly."""
        if opened.mode not in _NAMES and opened.mode != "YCbCr":
            raise UserError(
                f"{opened.format} of mode {opened.mode!r} cannot be read at its full depth: save it"
                " as grey or RGB, or as .npy"
            )


class AvifFile(PillowFile):
    """An AVIF of 8 bits. Pillow would halve the depth of others."""

    def __init__(self, content: bytes):
        super().__init__(content)
        if not features.check("avif"):
            raise DataUnavailableError("an AVIF needs Pillow 11.3 or newer: pip install -U pillow")
        place = content.find(b"av1C")
        if place < 0 or content[place + 6] & 0x60:  # the bits "high_bitdepth" and "twelve_bit"
            raise UserError("an AVIF of more than 8 bits cannot be read: save it as 16-bit PNG")


class HeicFile(ImageFile):
    """The first picture of a HEIC file, by pillow-heif, which turns it upright."""

    def _kind(self) -> str:
        opened = self._open()
        return f"HEIC, {opened.info.get('bit_depth', 8)}-bit {opened.mode}"

    def _read(self, window: Window, frame: int, max_pixels: int) -> Picture:
        opened = self._open()
        require_size(opened.size[1], opened.size[0], max_pixels)
        if opened.info.get("bit_depth", 8) != 8:
            raise UserError("a HEIC of more than 8 bits cannot be read: save it as 16-bit PNG")
        return opened.to_pillow()

    def _open(self) -> Any:
        heif = decoder("pillow_heif", "a HEIC image")
        return heif.open_heif(self.content, convert_hdr_to_8bit=False)
