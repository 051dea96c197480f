"""The directories of a TIFF, one a frame, of whatever kind its pixels are."""

import io
from collections.abc import Iterator

from PIL.TiffImagePlugin import ImageFileDirectory_v2

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0")  # the last is of files that may exceed 4 GB
_HEADER, _LARGE_HEADER = 8, 16  # bytes


def is_tiff(content: bytes) -> bool:
    """Whether a file begins as TIFF files do."""
    return content.startswith(_MAGIC)


def tiff_directories(content: bytes) -> Iterator[ImageFileDirectory_v2]:
    """Yields the tags of each frame: values by number, tuples where there may be several.

    It is one object, which the next frame changes.

    Raises:
        OSError, SyntaxError, struct.error: if the file is damaged.
    """
    file = io.BytesIO(content)
    header = file.read(_LARGE_HEADER if content.startswith(_MAGIC[2]) else _HEADER)
    directory = ImageFileDirectory_v2(header)
    seen = set()
    while (offset := directory.next) not in seen and (offset or not seen):
        if not 0 < offset < len(content):
            raise OSError(f"frame {len(seen)} is not in it")
        seen.add(offset)
        file.seek(offset)
        directory.load(file)
        yield directory
