"""Reads the arrays of an npz file. It checks what a file claims before it allocates memory.

Everything here raises zipfile.BadZipFile, zlib.error, EOFError or OSError if the file is damaged.
"""

import dataclasses
import io
import math
import zipfile
from collections.abc import Iterator

import numpy as np

from medmamba_jax.errors import UserError

_LONGEST_HEADER = 1 << 16  # bytes; NumPy itself refuses headers of more than 10,000 characters
_LARGEST = 1 << 30  # bytes of an array that does not hold images
_VERSIONS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in an npz file, of which only the header has been read.

    Attributes:
        name: the name of the array, for messages.
        dtype, shape: the dtype and shape of the array.
        fortran_order: whether the first axis varies fastest.
        offset: number of bytes before the values.
        archive, member: the file, and the array's place in it.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int
    archive: zipfile.ZipFile
    member: zipfile.ZipInfo

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"

    def load(self, *, most: int | None = None) -> np.ndarray:
        """Loads the array.

        Args:
            most: how many bytes it may have, because a small file can unpack to any size. The
                default is the limit for arrays that hold no images.

        Raises:
            UserError: the array is too large, or damaged.
        """
        most = _LARGEST if most is None else most
        if self.nbytes > most:
            raise UserError(
                f"{self.name} is {self}: it has {self.nbytes:,} bytes, and {most:,} are allowed;"
                " save it with a smaller dtype, save images as files, or get the file elsewhere"
            )
        try:
            with self.archive.open(self.member) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
        except (ValueError, MemoryError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.name} cannot be loaded ({reason}): get the file again, or, if it is larger"
                " than the memory, save its images as files"
            ) from error

    def load_for(self, images: "StoredArray") -> np.ndarray:
        """Loads labels or groups: one for each image, (n,), or K > 1 for each image, (n, K).

        Raises:
            UserError: as `load`, or there are not as many as there are images.
        """
        if self.shape[:1] != images.shape[:1]:
            raise UserError(
                f"{self.name} has the shape {self.shape}, but {images.name} holds"
                f" {images.shape[0]} images: one of each belongs together"
            )
        values = self.load()
        return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values

    def rows(self) -> Iterator[np.ndarray]:
        """Reads one row after another, because all of them may not fit into memory.

        Raises:
            UserError: the array is in Fortran order, or the file ends before its last value.
        """
        if self.fortran_order:
            raise UserError(f"{self.name} is in Fortran order: save numpy.ascontiguousarray of it")
        shape = self.shape[1:]
        size = math.prod(shape) * self.dtype.itemsize
        with self.archive.open(self.member) as stream:
            stream.read(self.offset)
            for _ in range(self.shape[0]):
                content = stream.read(size)
                if len(content) < size:
                    raise UserError(f"{self.name} ends {size - len(content)} bytes too early")
                yield np.frombuffer(content, self.dtype).reshape(shape)


def array_names(archive: zipfile.ZipFile) -> list[str]:
    """Returns the names of the arrays in an npz file."""
    return [member.removesuffix(".npy") for member in archive.namelist()]


def stored_array(archive: zipfile.ZipFile, name: str) -> StoredArray:
    """Reads only the header of an array in an npz file.

    Raises:
        UserError: there is no such array, it is pickled, its values have 0 bytes each, or the file
            holds fewer values than the header announces.
    """
    names = array_names(archive)
    if name not in names:
        raise UserError(f"there is no array {name!r} in it; it has {names}")
    member = archive.infolist()[names.index(name)]
    with archive.open(member) as stream:
        start = io.BytesIO(stream.read(_LONGEST_HEADER))
    try:
        version = np.lib.format.read_magic(start)
        read = _VERSIONS.get(version)
        found = None if read is None else read(start)
    except Exception as error:  # NumPy parses the header as Python, so anything may be raised
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is no array; save arrays by numpy.savez ({reason})") from error
    if found is None:
        raise UserError(f"{name} is in version {version} of the npy format: save it again")
    shape, fortran_order, dtype = found
    array = StoredArray(name, dtype, shape, fortran_order, start.tell(), archive, member)
    held = member.file_size - array.offset
    if any(side < 0 for side in shape):
        raise UserError(f"{name} claims to be of shape {shape}: get it again")
    if dtype.hasobject:
        raise UserError(
            f"{name} is pickled, and unpickling would run any code in it: save arrays of numbers or"
            " text, of one shape and dtype"
        )
    if not dtype.itemsize:
        raise UserError(f"{name} is {array}, values of 0 bytes each: save it with another dtype")
    if array.nbytes > held:
        raise UserError(
            f"{name} claims to be {array}, {array.nbytes:,} bytes, but the file holds {held:,}: get"
            " it again"
        )
    return array
