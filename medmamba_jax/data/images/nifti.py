"""Reads slices of NIfTI volumes, by nibabel."""

import gzip
import io
import math
from typing import Any

import numpy as np

from medmamba_jax.data.images.decoders import decoder
from medmamba_jax.data.images.image_file import (
    ImageFile,
    Picture,
    Range,
    explained_damage,
    rendered,
    require_modest,
    require_size,
)
from medmamba_jax.data.images.windowing import Window
from medmamba_jax.errors import UserError

_PART = 1 << 24  # bytes that are decompressed at once


def _unpacked(content: bytes) -> bytes:
    """Decompresses a file; raises UserError for one that `require_modest` refuses."""
    parts, size = [], 0
    with gzip.open(io.BytesIO(content)) as file:
        while part := file.read(_PART):
            size += len(part)
            require_modest(size, "the NIfTI file")
            parts.append(part)
    return b"".join(parts)


class NiftiFile(ImageFile):
    """A NIfTI file, version 1 or 2, with or without gzip.

    A frame is a slice of the third axis. With further axes, such as time, the slices of the first
    volume come first. The first axis of the volume becomes the columns from left to right, the
    second axis the rows from top to bottom: pixel (row y, column x) is `data[x, y, frame]`. The
    orientation in the header is not applied.
    """

    expected = "a NIfTI file that nibabel can read"

    def __init__(self, content: bytes):
        super().__init__(content)
        library = decoder("nibabel", "a NIfTI file")
        with explained_damage(self.expected):
            if content.startswith(b"\x1f\x8b"):
                content = _unpacked(content)
            version_2 = content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
            kind = library.Nifti2Image if version_2 else library.Nifti1Image
            self._data: Any = kind.from_bytes(content).dataobj
            needed = math.prod(self._data.shape) * self._data.dtype.itemsize
            if needed > len(content):
                raise UserError(
                    f"not a complete image file: the header announces {needed} bytes of pixels, and"
                    f" the file has {len(content)} bytes"
                )
            if not 2 <= len(self._data.shape) or not math.prod(self._data.shape):
                raise UserError(f"a NIfTI file of the shape {self._data.shape} has no slices")

    def _frames(self) -> int:
        return math.prod(self._data.shape[2:])

    def _kind(self) -> str:
        return f"NIfTI, {self._data.dtype}, {self._frames()} slices"

    def _read(self, window: Window, frame: int, max_pixels: int) -> Picture:
        shape = self._data.shape
        require_size(shape[0], shape[1], max_pixels)
        place = np.unravel_index(frame, shape[2:], order="F") if shape[2:] else ()
        values = np.asarray(self._data[(slice(None), slice(None), *map(int, place))])
        if values.dtype.names:  # RGB24, RGBA32
            values = np.stack([values[name] for name in values.dtype.names], axis=-1)
        return rendered(values.swapaxes(0, 1), window, full=self._range(values.dtype))

    def _range(self, dtype: np.dtype) -> Range | None:
        """Returns what integers of the file can mean; None for floating point numbers."""
        stored = self._data.dtype
        if stored.kind not in "iu" or stored == dtype:
            return None
        limits = np.iinfo(stored)
        low, high = sorted(
            float(limit) * self._data.slope + self._data.inter for limit in (limits.min, limits.max)
        )
        return low, high
