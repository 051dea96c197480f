"""Decompresses the pixels of DICOM files by imagecodecs, as a plugin of pydicom.

pydicom's own plugins are used for RLE only. gdcm ends the whole process at some damaged files, and
with Pillow some colours are converted twice.
"""

from typing import Any

from pydicom import uid
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import Decoder, DecodeRunner

from medmamba_jax.data.images.coded_files import coded_size
from medmamba_jax.data.images.decoders import decoder
from medmamba_jax.data.images.image_file import require_end, require_exact_jpeg2000
from medmamba_jax.errors import UserError

_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
_LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_2000 = (
    *(uid.JPEG2000Lossless, uid.JPEG2000),
    *(uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K),
)
# Transfer syntax -> the name of the function of imagecodecs.
_FUNCTIONS = {
    **dict.fromkeys(_JPEG + _LOSSLESS, "jpeg_decode"),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, "jpegls_decode"),
    **dict.fromkeys(_JPEG_2000, "jpeg2k_decode"),
}

# The names that pydicom looks for in a plugin.
DECODER_DEPENDENCIES = dict.fromkeys(_FUNCTIONS, ("imagecodecs",))


def is_available(uid: str) -> bool:
    """Whether the plugin decodes the transfer syntax; `reader_of` looks for the package."""
    return uid in _FUNCTIONS


def reader_of(syntax: uid.UID) -> tuple[Decoder, str]:
    """Returns pydicom's decoder for a transfer syntax, and the name of the plugin that it uses.

    Raises:
        DataUnavailableError: imagecodecs is not installed.
        UserError: there is no decoder.
    """
    name = "imagecodecs" if syntax in _FUNCTIONS else ""
    if name:
        decoder(name, f"DICOM ({syntax.name})")
    try:
        return get_decoder(syntax), name
    except NotImplementedError:
        raise UserError(f"DICOM compressed as {syntax.name} cannot be read: convert it") from None


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """Decodes a frame, and tells pydicom how to interpret the decoded bytes.

    Raises:
        UserError: the frame is cut off, or cannot be decoded exactly.
    """
    syntax = runner.transfer_syntax
    options: dict[str, Any] = {}
    if syntax in _JPEG + _LOSSLESS:
        require_end(source)
    if syntax in _JPEG and runner.samples_per_pixel == 3:
        options = _colours(source, runner)
    elif syntax in _LOSSLESS and runner.samples_per_pixel == 3:
        options = {"colorspace": "RGB", "outcolorspace": "RGB"}  # as they are stored
    elif syntax in uid.JPEGLSTransferSyntaxes:  # may hold more bits than the pixels have
        bits = min(runner.get_option("jls_precision"), runner.bits_stored)
        runner.set_option("jls_precision", bits)
    elif syntax in _JPEG_2000:
        require_exact_jpeg2000(runner.get_option("j2k_precision", 0))
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
            runner.set_option("photometric_interpretation", "RGB")
    start = max(source.find(b"\xff\x4f\xff\x51"), 0) if syntax in _JPEG_2000 else 0
    size = coded_size(source[start:])
    if size != (runner.rows, runner.columns):  # damage could ask for any amount of memory
        raise UserError(f"the compressed pixels are {size}, not {(runner.rows, runner.columns)}")
    pixels = getattr(decoder("imagecodecs", "DICOM"), _FUNCTIONS[syntax])(source, **options)
    runner.set_option("bits_allocated", 8 * pixels.itemsize)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    return pixels.tobytes()


def _colours(source: bytes, runner: DecodeRunner) -> dict[str, str]:
    """Returns the options of imagecodecs for a lossy JPEG, which becomes RGB."""
    kept = runner.photometric_interpretation == "RGB"
    place = source.find(b"\xff\xee\0\x0eAdobe")
    runner.set_option("photometric_interpretation", "RGB")
    if place >= 0:  # this marker says what the colours are
        if kept and source[place + 15]:
            raise UserError("the header says RGB, and the JPEG in the file says YCbCr: convert it")
        return {}
    return {"colorspace": "RGB" if kept else "YCBCR", "outcolorspace": "RGB"}


for _syntax in _FUNCTIONS:
    get_decoder(_syntax).add_plugin("imagecodecs", (__name__, "decode_frame"))
