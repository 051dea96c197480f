"""The first bytes of files, which show their kind."""

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
    """Whether a file begins as BigTIFF files do, which have offsets of 64 bits."""
    return content.startswith(_LARGE_TIFF)


def png_bit_depth(content: bytes) -> int | None:
    """Returns the bits in each channel of a PNG; None if the file is no PNG or is too short."""
    if not content.startswith(_PNG) or len(content) <= _PNG_BIT_DEPTH_OFFSET:
        return None
    return content[_PNG_BIT_DEPTH_OFFSET]
