"""Reads the header of an array in an npz file, before memory is allocated for the array."""

import dataclasses
import io
import math
import zipfile

import numpy as np

from medmamba_jax.errors import UserError

_LONGEST = 1 << 16  # bytes; NumPy itself refuses headers of more than 10,000 characters
_LARGEST = 1 << 30  # bytes of an array that does not hold images
_VERSIONS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclasses.dataclass(frozen=True)
class NpyHeader:
    """The header of an array.

    Attributes:
        name: the name of the array, for messages.
        dtype, shape: the dtype and shape of the array.
        fortran_order: whether the first axis varies fastest.
        offset: number of bytes before the values.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"

    def require_small(self) -> None:
        """Raises UserError if the array is too large to hold labels, groups or names."""
        if self.nbytes > _LARGEST:
            raise UserError(
                f"{self.name} is {self}, {self.nbytes:,} bytes, of which {_LARGEST:,} are allowed:"
                " save it with a smaller dtype, or get the file elsewhere"
            )


def read_npy_header(archive: zipfile.ZipFile, name: str) -> NpyHeader:
    """Reads only the header of an array in an npz file.

    Args:
        archive: the npz file.
        name: the name of an array in the file.

    Raises:
        zipfile.BadZipFile, zlib.error, EOFError, OSError: the file is damaged.
        UserError: the member is not an array, its values have 0 bytes each, or the file holds fewer
            values than the header announces.
    """
    member = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
    with archive.open(member) as stream:
        start = io.BytesIO(stream.read(_LONGEST))
    try:
        version = np.lib.format.read_magic(start)
        read = _VERSIONS.get(version)
        found = None if read is None else read(start)
    except Exception as error:  # NumPy parses the header as Python, so damage can raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is no array; save arrays by numpy.savez ({reason})") from error
    if found is None:
        raise UserError(f"{name} is in version {version} of the npy format: save it again")
    shape, fortran_order, dtype = found
    if any(side < 0 for side in shape):
        raise UserError(f"{name} claims to be of shape {shape}: get it again")
    header = NpyHeader(name, dtype, shape, fortran_order, start.tell())
    if not dtype.itemsize:
        raise UserError(f"{name} is {header}, values of 0 bytes each: save it with another dtype")
    held = archive.getinfo(member).file_size - header.offset
    if not dtype.hasobject and header.nbytes > held:
        raise UserError(
            f"{name} claims to be {header}, {header.nbytes:,} bytes, but the file holds {held:,}:"
            " get it again"
        )
    return header
