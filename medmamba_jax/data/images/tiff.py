"""Reads TIFF files of every depth, by tifffile. Without it, Pillow reads the plain ones."""

import functools
import io
import logging
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from medmamba_jax.data.images.decoders import decoder, missing
from medmamba_jax.data.images.image_file import (
    ImageFile,
    Picture,
    integer_range,
    rendered,
    require_exact_jpeg2000,
    require_size,
)
from medmamba_jax.data.images.pillow_files import PillowFile
from medmamba_jax.data.images.windowing import Window
from medmamba_jax.errors import DataUnavailableError, UserError

# Photometric interpretation -> name and number of colours. Of the others, tifffile reads numbers
# whose meaning is not known here.
_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE_IS_ZERO: 1, _GREY: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_NAMES = {3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 32803: "CFA"}
_ASSOCIATED, _UNASSOCIATED = 1, 2  # kinds of alpha
_JPEG = (6, 7, 34892, 33007)  # compressions in which tifffile converts YCbCr to RGB
# What Pillow reads exactly: bits of each channel, mode; and compressions (LZW, deflate, PackBits).
_PLAIN_DEPTHS = (
    ((1,), "1"),
    ((8,), "L"),
    ((8,), "P"),
    ((8,) * 3, "RGB"),
    ((8,) * 4, "RGBA"),
    ((16,), "I;16"),
    ((16,), "I;16B"),
)
_PLAIN_COMPRESSIONS = (1, 5, 8, 32773, 32946)
_JPEG_2000 = (33003, 33004, 33005, 34712)
_REMEDY = "save it as grey or RGB of 8 or 16 bits, or as .npy"

# tifffile logs some damage and goes on. What matters here becomes an error.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class TiffImage(ImageFile):
    """A TIFF or BigTIFF. Each page of its main chain is a frame."""

    def __init__(self, content: bytes):
        super().__init__(content)
        self._file = decoder("tifffile", "a TIFF").TiffFile(io.BytesIO(content))

    def _frames(self) -> int:
        with self._lock:
            return len(self._places)

    def _kind(self) -> str:
        with self._lock:
            page = self._page(0)
            if name := _NAMES.get(page.photometric):
                return f"TIFF, {name}" if name == "palette" else f"TIFF, {_bits(page)}-bit {name}"
            colours, alpha, _ = _channels(page)
            depth = {"f": " floating point", "i": " signed"}.get(page.dtype.kind, "")
            colour = {1: "grey", 3: "colour"}.get(colours, f"of {colours} channels")
            return f"TIFF, {_bits(page)}-bit{depth} {colour}{' with alpha' * alpha}"

    def _read(self, window: Window, frame: int, max_pixels: int) -> Picture:
        with self._lock:
            page = self._page(frame)
            bits = _bits(page)
            require_size(page.imagelength * page.imagedepth, page.imagewidth, max_pixels)
            if page.compression in _JPEG_2000:
                require_exact_jpeg2000(bits)
            colours, alpha, associated = _channels(page)
            values = _decoded(page)
            turn = int(page.tags.valueof(274, 1))  # Orientation
            if page.photometric == _PALETTE:
                table = page.colormap
                # Some writers store 8 bits in the 16 of an entry.
                table = table if table.max() < 256 else table >> 8
                return rendered(table.T.astype(np.uint8)[values[..., 0]], window, orientation=turn)
            if page.photometric == _CMYK:
                inks = Image.frombytes("CMYK", values.shape[1::-1], values[..., :4].tobytes())
                return rendered(np.asarray(inks.convert("RGB")), window, orientation=turn)
            full = integer_range(bits, signed=values.dtype.kind == "i")
            values = values[..., : colours + alpha]
            return rendered(
                _divided_by_alpha(values, int(full[1])) if associated else values,
                window,
                full=None if values.dtype.kind == "f" else full,
                alpha=alpha,
                inverted=page.photometric == _WHITE_IS_ZERO,
                orientation=turn,
            )

    def _page(self, frame: int) -> Any:
        """Reads a page's directory. Later pages may be damaged if it is the first."""
        place = self._places[frame] if frame else next(self._directories())
        self._file.filehandle.seek(place)
        return decoder("tifffile", "a TIFF").TiffPage(self._file, frame)

    @functools.cached_property
    def _places(self) -> list[int]:
        """The place of each page's directory.

        ImageJ and MetaMorph may write one directory for all frames, which raises UserError.
        """
        places = list(self._directories())
        imagej, stk = self._file.imagej_metadata or {}, self._file.stk_metadata or {}
        frames = max(imagej.get("images", 1), stk.get("NumberPlanes", 1))
        if frames > len(places) == 1:
            raise UserError(
                f"a TIFF with one directory for {frames} frames cannot be read: save each frame as"
                " a page, or the stack as .npy"
            )
        return places

    def _directories(self) -> Iterator[int]:
        """Yields the places; tifffile would leave out pages of a damaged chain silently."""
        layout = self._file.tiff
        link = layout.offsetsize  # where the header names the first directory
        seen: set[int] = set()
        while True:
            (place,) = struct.unpack_from(layout.offsetformat, self.content, link)
            if place in seen or (seen and not place):
                return
            if not 0 < place < len(self.content):
                raise UserError(f"not a complete image file: frame {len(seen)} is not in it")
            seen.add(place)
            yield place
            (tags,) = struct.unpack_from(layout.tagnoformat, self.content, place)
            link = place + layout.tagnosize + tags * layout.tagsize


class PlainTiff(PillowFile):
    """A TIFF of 8 bits or of 16-bit grey, which Pillow reads exactly, without tifffile."""

    def _open(self) -> Image.Image:
        try:
            return super()._open()
        except UnidentifiedImageError as error:  # damaged, or of a kind that Pillow does not know
            raise missing("tifffile", "this kind of TIFF") from error

    def _require_exact(self, opened: Image.Image) -> None:
        tags: Any = opened.tag_v2  # type: ignore[attr-defined]
        depth = (tags.get(258, (1,)), opened.mode)
        plain = (
            depth in _PLAIN_DEPTHS
            and tags.get(339, (1,))[0] == 1
            and tags.get(262) in (_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE)
            and tags.get(259, 1) in _PLAIN_COMPRESSIONS
            and tags.get(338, (_UNASSOCIATED,)) == (_UNASSOCIATED,)
        )
        if not plain:
            raise missing("tifffile", "this kind of TIFF")


def open_tiff(content: bytes) -> ImageFile:
    """Opens a TIFF by tifffile, or by Pillow where tifffile is not installed."""
    try:
        return TiffImage(content)
    except DataUnavailableError:
        return PlainTiff(content)


def _channels(page: Any) -> tuple[int, bool, bool]:
    """Returns the number of colours, whether alpha follows, and whether it is multiplied in.

    A grey page with further channels of no named meaning has as many colours as channels.
    """
    # tifffile takes a page without the tag for "white is zero".
    photometric = int(page.photometric) if 262 in page.tags else -1
    colours = _COLOURS.get(photometric)
    name = _NAMES.get(photometric, f"PhotometricInterpretation {photometric}")
    if colours is None or (photometric == _YCBCR and page.compression not in _JPEG):
        raise UserError(f"a TIFF of the kind {name} cannot be read: {_REMEDY}")
    if photometric in (_PALETTE, _CMYK):
        if page.dtype not in (bool, np.uint8):
            raise UserError(
                f"a {_bits(page)}-bit {name} TIFF cannot be read at its full depth: {_REMEDY}"
            )
        return colours, False, False
    further = page.samplesperpixel - colours
    extra = page.extrasamples[0] if page.extrasamples else _UNASSOCIATED
    if not further or (colours == 3 and extra not in (_ASSOCIATED, _UNASSOCIATED)):
        return colours, False, False
    if extra in (_ASSOCIATED, _UNASSOCIATED):
        if page.dtype.kind not in "bu" or page.dtype.itemsize > 4:
            raise UserError(f"a TIFF of {page.dtype} with alpha cannot be read: save it without")
        return colours, True, extra == _ASSOCIATED
    if set(page.extrasamples) & {_ASSOCIATED, _UNASSOCIATED}:
        raise UserError(f"a TIFF with alpha after other channels cannot be read: {_REMEDY}")
    return page.samplesperpixel, False, False


def _decoded(page: Any) -> np.ndarray:
    """Returns (h, w, channels)."""
    ends = np.add(page.dataoffsets, page.databytecounts)
    parts = 1 if page.is_contiguous else math.prod(page.chunked)
    if len(ends) < parts or min(page.databytecounts) < 1 or max(ends) > page.parent.filehandle.size:
        raise UserError("not a complete image file: some of its pixels are missing")
    try:
        values = page.asarray(squeeze=False, maxworkers=1)
    except ValueError as error:
        if "imagecodecs" in str(error):
            raise missing("imagecodecs", "this kind of TIFF") from error
        raise
    _, depth, height, width, _ = values.shape  # channels are first or last
    if depth != 1:
        raise UserError(f"a TIFF of volumes cannot be read: {_REMEDY}")
    values = np.moveaxis(values[:, 0], 0, -2).reshape(height, width, -1)
    return values.astype(np.uint8) if values.dtype == bool else values


def _bits(page: Any) -> int:
    bits = page.bitspersample
    if not isinstance(bits, int) or page.dtype is None or page.dtype.kind not in "biuf":
        raise UserError(f"a TIFF of a kind that cannot be read: {_REMEDY}")
    return bits


def _divided_by_alpha(values: np.ndarray, most: int) -> np.ndarray:
    """Undoes the multiplication of colours by alpha, as Pillow does."""
    colours, alpha = values[..., :-1].astype(np.uint64), values[..., -1:]
    divided = np.minimum(colours * most // np.maximum(alpha, 1), most)
    divided = np.where(alpha == 0, colours, divided).astype(values.dtype)
    return np.concatenate([divided, alpha], axis=-1)
