"""What files begin with, by their kind."""

_NPY = b"\x93NUMPY"
_PNG, _PNG_BIT_DEPTH_OFFSET = b"\x89PNG\r\n\x1a\n", 24
_TIFF = (b"II*\0", b"MM\0*")
_LARGE_TIFF = b"II+\0"  # of files that may exceed 4 GB


def is_npy(content: bytes) -> bool:
    """Whether a file begins as .npy files do."""
    return content.startswith(_NPY)


def is_tiff(content: bytes) -> bool:
    """Whether a file begins as TIFF files do."""
    return content.startswith((*_TIFF, _LARGE_TIFF))


def is_large_tiff(content: bytes) -> bool:
    """Whether a file begins as TIFF files do whose places are numbers of 64 bits."""
    return content.startswith(_LARGE_TIFF)


def png_bit_depth(content: bytes) -> int | None:
    """Returns how many bits a channel of a PNG has; None if it is none, or ends before that."""
    if not content.startswith(_PNG) or len(content) <= _PNG_BIT_DEPTH_OFFSET:
        return None
    return content[_PNG_BIT_DEPTH_OFFSET]
