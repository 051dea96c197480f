"""Reads 16-bit colour PNG, deep JPEG, JPEG-LS and JPEG 2000, by imagecodecs."""

import io
import logging
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import ExifTags, Image

from medmamba_jax.data.images.decoders import decoder
from medmamba_jax.data.images.image_file import (
    ImageFile,
    Picture,
    integer_range,
    rendered,
    require_end,
    require_exact_jpeg2000,
    require_size,
)
from medmamba_jax.data.images.pillow_files import PillowFile
from medmamba_jax.data.images.windowing import Window
from medmamba_jax.errors import UserError

_CHANNELS = {2: 3, 4: 2, 6: 4}  # of a PNG, by colour type
_COLOURS = {1: "grey", 2: "grey with alpha", 3: "colour", 4: "colour with alpha"}
_LOSSLESS, _LS = 0xC3, 0xF7  # frames of JPEG
_FRAMES_OF_JPEG = {*range(0xC0, 0xD0), _LS} - {0xC4, 0xC8, 0xCC}

_CODESTREAM = b"\xff\x4f\xff\x51"  # the first bytes of JPEG 2000

# libpng complains about the way imagecodecs calls it. The pixels are right.
logging.getLogger("imagecodecs").addFilter(lambda log: "Interlace handl" not in log.getMessage())


class Header(NamedTuple):
    """What an image's header says.

    Attributes:
        name: the format.
        decode: the name of the function of imagecodecs.
        height, width: in pixels.
        channels: their number; 2 and 4 are grey and RGB with alpha.
        bits: of each channel.
        signed: whether values can be negative.
        orientation: the EXIF orientation.
    """

    name: str
    decode: str
    height: int
    width: int
    channels: int
    bits: int
    signed: bool = False
    orientation: int = 1


class CodedFile(ImageFile):
    """An image of one frame that imagecodecs decodes.

    Args:
        content: the bytes of the file.
        header: what its header says.
    """

    def __init__(self, content: bytes, header: Header):
        super().__init__(content)
        self._header = header

    def _kind(self) -> str:
        header = self._header
        return f"{header.name}, {header.bits}-bit {_COLOURS[header.channels]}"

    def _read(self, window: Window, frame: int, max_pixels: int) -> Picture:
        header = self._header
        require_size(header.height, header.width, max_pixels)
        library = decoder("imagecodecs", self._kind())
        if header.name == "JPEG":
            require_end(self.content)
        values = getattr(library, header.decode)(self.content)
        if header.name == "PNG" and values.shape[2:] == (header.channels + 1,):
            values = values[..., :-1]  # made from a transparent colour (tRNS)
        shape = (header.height, header.width, header.channels)
        if (values.shape if values.ndim == 3 else (*values.shape, 1)) != shape:
            raise UserError(f"the pixels are {values.shape}, but the header announces {shape}")
        return rendered(
            values,
            window,
            full=integer_range(header.bits, signed=header.signed),
            alpha=header.channels in (2, 4),
            orientation=header.orientation,
        )


class DeepPng(CodedFile):
    """A PNG with 16-bit colour. Its EXIF orientation may stand behind the pixels."""

    def _read(self, window: Window, frame: int, max_pixels: int) -> Picture:
        # This comes before `getexif`, which decodes the image.
        require_size(self._header.height, self._header.width, max_pixels)
        opened = Image.open(io.BytesIO(self.content), formats=("PNG",))
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        self._header = self._header._replace(orientation=orientation)
        return super()._read(window, frame, max_pixels)


class AnimatedPng(ImageFile):
    """A PNG of several frames with 16-bit colour, which no library here reads at its full depth."""

    def _kind(self) -> str:
        return "animated 16-bit PNG"

    def _read(self, window: Window, frame: int, max_pixels: int) -> Picture:
        raise UserError(f"an {self._kind()} cannot be read at its full depth: save it as .npy")


def open_png(content: bytes) -> ImageFile:
    """Opens a PNG: by imagecodecs if it has 16-bit colour or alpha, by Pillow if not."""
    if content[24:25] != b"\x10" or content[25] not in _CHANNELS:
        return PillowFile(content)
    opened = Image.open(io.BytesIO(content), formats=("PNG",))
    if getattr(opened, "is_animated", False):
        return AnimatedPng(content)
    size = opened.height, opened.width, _CHANNELS[content[25]]
    return DeepPng(content, Header("PNG", "png_decode", *size, 16))


def open_jpeg(content: bytes) -> ImageFile:
    """Opens a JPEG: by imagecodecs if it is JPEG-LS or has more than 8 bits, by Pillow if not."""
    orientation = 1
    for marker, segment in _segments(content):
        if marker in _FRAMES_OF_JPEG:
            bits, channels = segment[0], segment[5]
            if bits == 8 and marker != _LS:
                break
            if channels not in (1, 3) or (marker == _LOSSLESS and channels != 1):
                raise UserError(
                    f"a {bits}-bit JPEG of {channels} channels cannot be read: save it as grey or"
                    " RGB PNG"
                )
            name, decode = (
                ("JPEG-LS", "jpegls_decode") if marker == _LS else ("JPEG", "jpeg_decode")
            )
            size = coded_size(content)
            header = Header(name, decode, *size, channels, bits, orientation=orientation)
            return CodedFile(content, header)
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            exif = Image.Exif()
            exif.load(segment)
            orientation = exif.get(ExifTags.Base.Orientation, 1)
    return PillowFile(content)


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the marker and the content of each segment of a JPEG, as far as the pixels."""
    place = 2
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        size = int.from_bytes(content[place + 2 : place + 4])
        yield marker, content[place + 4 : max(place + 2 + size, place + 10)]
        place += 2 + size


def coded_size(content: bytes) -> tuple[int, int]:
    """Returns height and width by the header of a JPEG, JPEG-LS or JPEG 2000 codestream.

    Raises:
        UserError: there is no such header.
    """
    if content.startswith(_CODESTREAM):
        right, bottom, left, top = struct.unpack_from(">4I", content, 8)
        return bottom - top, right - left
    for marker, segment in _segments(content):
        if marker in _FRAMES_OF_JPEG:
            height, width = struct.unpack_from(">HH", segment, 1)
            return height, width
    raise UserError("not a complete image file: the header is damaged")


def open_jpeg2000(content: bytes) -> ImageFile:
    """Opens a JPEG 2000 file or codestream of grey or RGB, with or without alpha."""
    start = content.find(_CODESTREAM)
    boxes, size = content[:start], content[start + 4 :]
    height, width = coded_size(content[start:])
    channels = int.from_bytes(size[36:38])
    depths = {size[at : at + 3] for at in range(38, 38 + 3 * channels, 3)}
    (depth,) = depths if len(depths) == 1 else (b"",)
    place = boxes.find(b"colr\x01")
    space = int.from_bytes(boxes[place + 7 : place + 11]) if place >= 0 else None
    plain = (
        start >= 0
        and depth[1:] == b"\1\1"  # no channel has fewer pixels
        and (channels in (1, 3) or (channels in (2, 4) and b"cdef" in boxes))
        and space in (None, 16, 17)  # sRGB, grey
        and b"pclr" not in boxes
    )
    if not plain:
        raise UserError(
            "a JPEG 2000 image with a palette, YCC colours, or channels of unequal kinds cannot be"
            " read: save it as PNG"
        )
    bits, signed = (depth[0] & 127) + 1, depth[0] > 127
    require_exact_jpeg2000(bits)
    header = Header("JPEG 2000", "jpeg2k_decode", height, width, channels, bits, signed)
    return CodedFile(content, header)
