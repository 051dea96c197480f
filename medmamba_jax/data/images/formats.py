"""The table of file formats: how each begins, what it is called, and what reads it."""

import codecs
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from medmamba_jax.data.images.arrays import ArrayFile
from medmamba_jax.data.images.coded_files import open_jpeg, open_jpeg2000, open_png
from medmamba_jax.data.images.dicom import DicomFile, is_dicom
from medmamba_jax.data.images.image_file import ImageFile
from medmamba_jax.data.images.nifti import NiftiFile
from medmamba_jax.data.images.pillow_files import AvifFile, HeicFile, PillowFile
from medmamba_jax.data.images.tiff import open_tiff

HEAD = 4096  # bytes that suffice to recognise a file


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        name: what it is called, with an article where it is no image.
        begins: whether a file begins like this one. It may see the first `HEAD` bytes only.
        open: reads an image. None if such files are not read.
        suffixes: usual endings of such image files, in small letters.
        remedy: what to do with a file that is not read.
    """

    name: str
    begins: Callable[[bytes], bool]
    open: Callable[[bytes], ImageFile] | None = None
    suffixes: tuple[str, ...] = ()
    remedy: str = ""


def _start(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda content: content.startswith(magic)


def _at(place: int, *magic: bytes) -> Callable[[bytes], bool]:
    return lambda content: content.startswith(magic, place)


def _text(*words: bytes) -> Callable[[bytes], bool]:
    """Recognises a text that begins with a word, in capitals or not, after a mark and spaces."""
    return lambda content: (
        content[:256].removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(words)
    )


def _brand(*brands: bytes) -> Callable[[bytes], bool]:
    """Recognises a file of the family of MP4 by its brands."""

    def begins(content: bytes) -> bool:
        if content[4:8] != b"ftyp":
            return False
        end = min(int.from_bytes(content[:4]), 256)
        return any(content[at : at + 4] in brands for at in (8, *range(16, end, 4)))

    return begins


def _is_nifti(content: bytes) -> bool:
    if content.startswith(b"\x1f\x8b"):
        try:
            content = zlib.decompressobj(31).decompress(content, 400)
        except zlib.error:
            return False
    return content[344:348] == b"n+1\0" or content[4:8] == b"n+2\0"


def _is_tga(content: bytes) -> bool:
    """Recognises a TGA by its fields, because it begins with no text of its own.

    An icon, which begins in the same way, has the number of its pictures in the place of the colour
    map, which is empty in a TGA without a palette.
    """
    if len(content) < 18:
        return False
    kinds = {0: (2, 3, 10, 11), 1: (1, 9)}.get(content[1], ())  # without and with a palette
    return (
        content[2] in kinds
        and any(content[3:8]) == bool(content[1])
        and any(content[12:14])  # width
        and any(content[14:16])  # height
        and content[16] in (8, 15, 16, 24, 32)  # bits of a pixel
    )


_CONVERT = "convert it to PNG, TIFF or .npy"
_UNPACK = "unpack it"
_DOWNLOAD = "download the image again"

# The first row that fits names a file. The default install reads the rows of Pillow and NumPy; the
# other packages but pillow-heif come with the extra `formats`.
FORMATS = (
    # pydicom, and imagecodecs for compressed pixels. The preamble can be the header of a TIFF.
    Format(
        "a DICOMDIR",
        lambda content: is_dicom(content) and b"1.2.840.10008.1.3.10\0" in content[132:HEAD],
        remedy="it lists other files; remove it",
    ),
    Format("DICOM", is_dicom, DicomFile, (".dcm", ".dicom", ".ima")),
    # Pillow; imagecodecs for 16 bits of colour, or of grey with alpha
    Format("PNG", _start(b"\x89PNG\r\n\x1a\n"), open_png, (".png",)),
    # Pillow; imagecodecs for more than 8 bits and for JPEG-LS
    Format("JPEG", _start(b"\xff\xd8\xff"), open_jpeg, (".jpg", ".jpeg", ".jfif", ".jpe", ".jls")),
    # tifffile, and imagecodecs for most compressions; without it Pillow, for plain files
    Format("TIFF", _start(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), open_tiff, (".tif", ".tiff")),
    # Pillow
    Format("BMP", _start(b"BM"), PillowFile, (".bmp",)),
    Format("GIF", _start(b"GIF87a", b"GIF89a"), PillowFile, (".gif",)),
    Format(
        "WebP", lambda content: content[:4] + content[8:12] == b"RIFFWEBP", PillowFile, (".webp",)
    ),
    Format("AVIF", _brand(b"avif"), AvifFile, (".avif",)),
    # NumPy
    Format("NumPy array", _start(b"\x93NUMPY"), ArrayFile, (".npy",)),
    # nibabel
    Format("NIfTI", _is_nifti, NiftiFile, (".nii", ".nii.gz")),
    # imagecodecs
    Format(
        "JPEG 2000",
        _start(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
        open_jpeg2000,
        (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"),
    ),
    # pillow-heif
    Format(
        "HEIC", _brand(b"heic", b"heix", b"mif1", b"heim", b"heis"), HeicFile, (".heic", ".heif")
    ),
    # Other images
    Format(
        "a sequence of HEIC or AVIF", _brand(b"hevc", b"hevx", b"avis", b"msf1"), remedy=_CONVERT
    ),
    Format("JPEG XL", _start(b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"), remedy=_CONVERT),
    Format("JPEG XR", _start(b"II\xbc"), remedy=_CONVERT),
    Format("a Photoshop document", _start(b"8BPS"), remedy=_CONVERT),
    Format("OpenEXR", _start(b"\x76\x2f\x31\x01"), remedy=_CONVERT),
    Format("a TGA image", _is_tga, remedy=_CONVERT),
    Format("an icon", _start(b"\0\0\1\0", b"\0\0\2\0"), remedy=_CONVERT),
    Format("NRRD", _start(b"NRRD000"), remedy=_CONVERT),
    Format("MetaImage", _text(b"objecttype", b"ndims"), remedy=_CONVERT),
    Format("a NIfTI or Analyze header without its pixels", _at(344, b"ni1\0"), remedy=_CONVERT),
    Format("SVG", lambda content: b"<svg" in content[:1024].lower(), remedy=_CONVERT),
    Format(
        "a netpbm image",
        _start(*(b"P%d%c" % (n, c) for n in range(1, 8) for c in b" \n\r\t#")),
        remedy=_CONVERT,
    ),
    # What is no image
    Format(
        "a Git LFS pointer",
        _start(b"version https://git-lfs"),
        remedy="the image itself is not here; run `git lfs pull` in its repository",
    ),
    Format(
        "an HTML page", _text(b"<!doctype html", b"<html", b"<head", b"<body"), remedy=_DOWNLOAD
    ),
    Format("an XML text", _text(b"<?xml"), remedy=_DOWNLOAD),
    Format("a JSON text", _text(b"{", b"["), remedy=_DOWNLOAD),
    Format("a PDF", _text(b"%pdf-"), remedy="export its images as PNG"),
    Format("a ZIP archive", _start(b"PK\3\4", b"PK\5\6"), remedy=_UNPACK),
    Format("a gzip archive", _start(b"\x1f\x8b"), remedy=_UNPACK),
    Format("a RAR archive", _start(b"Rar!\x1a\7"), remedy=_UNPACK),
    Format("a 7z archive", _start(b"7z\xbc\xaf\x27\x1c"), remedy=_UNPACK),
    Format("a bzip2 archive", _start(b"BZh"), remedy=_UNPACK),
    Format("an xz archive", _start(b"\xfd7zXZ\0"), remedy=_UNPACK),
    Format("a tar archive", _at(257, b"ustar"), remedy=_UNPACK),
    Format("an HDF5 file", _start(b"\x89HDF\r\n\x1a\n"), remedy="save its images as .npy"),
    Format("a MATLAB file", _start(b"MATLAB 5.0"), remedy="save its images as .npy"),
    Format("a video", _at(4, b"ftyp"), remedy="save its frames as PNG"),
    Format(
        "a macOS resource fork",
        _start(b"\0\5\x16\7"),
        remedy="it belongs to another file; remove it",
    ),
    Format("an empty file", lambda content: not content, remedy=_DOWNLOAD),
    Format("a file of zeros", lambda content: not any(content[:HEAD]), remedy=_DOWNLOAD),
)

IMAGE_SUFFIXES = tuple(suffix for format in FORMATS for suffix in format.suffixes)


def format_of(content: bytes) -> Format | None:
    """Returns the row of `FORMATS` for a file, or None if no row fits.

    Args:
        content: the bytes of the file, or its first `HEAD` bytes.
    """
    return next((format for format in FORMATS if format.begins(content)), None)


def kind_of(content: bytes) -> str:
    """Names what a file is by its first bytes, such as "JPEG" or "an HTML page".

    Args:
        content: the bytes of the file, or its first `HEAD` bytes.
    """
    if format := format_of(content):
        return format.name
    try:  # the last character may be cut off
        codecs.getincrementaldecoder("utf-8")().decode(content[:HEAD])
    except UnicodeDecodeError:
        return "a file of an unknown kind"
    return "a text"


def is_image_file(path: Path) -> bool:
    """Whether a file is an image, by its ending or, with another ending, by its first bytes.

    A file with the ending of an image counts as one without being opened: if it is something else,
    `decoding.parsed` says so later, and the file is not left out silently.
    """
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return True
    with path.open("rb") as file:
        format = format_of(file.read(HEAD))
    return format is not None and format.open is not None
