"""Reads the arrays of an npz file. It checks what a file claims before it allocates memory."""

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


class NpzFile:
    """The arrays of an npz file by name.

    Every method raises zipfile.BadZipFile, zlib.error, EOFError or OSError if the file is damaged.

    Args:
        archive: the file.
    """

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    @property
    def names(self) -> list[str]:
        """The names of the arrays."""
        return list(self._members)

    def header(self, name: str) -> NpyHeader:
        """Reads only the header of an array.

        Raises:
            UserError: there is no array of this name, it is pickled, its values have 0 bytes each,
                or the file holds fewer values than the header announces.
        """
        if name not in self._members:
            raise UserError(f"there is no array {name!r} in it; it has {self.names}")
        with self._archive.open(self._members[name]) as stream:
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
        if any(side < 0 for side in shape):
            raise UserError(f"{name} claims to be of shape {shape}: get it again")
        header = NpyHeader(name, dtype, shape, fortran_order, start.tell())
        if dtype.hasobject:
            raise UserError(
                f"{name} is pickled, and unpickling would run any code in it: save arrays of"
                " numbers or text, of one shape and dtype"
            )
        if not dtype.itemsize:
            raise UserError(
                f"{name} is {header}, values of 0 bytes each: save it with another dtype"
            )
        held = self._members[name].file_size - header.offset
        if header.nbytes > held:
            raise UserError(
                f"{name} claims to be {header}, {header.nbytes:,} bytes, but the file holds"
                f" {held:,}: get it again"
            )
        return header

    def load(self, header: NpyHeader) -> np.ndarray:
        """Loads an array.

        Raises:
            UserError: it does not fit into memory, or the file ends before its last value.
        """
        try:
            with self._archive.open(self._members[header.name]) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
        except (ValueError, MemoryError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{header.name} cannot be loaded ({reason}): get the file again, or, if it is"
                " larger than the memory, save its images as files"
            ) from error

    def load_small(self, header: NpyHeader) -> np.ndarray:
        """Loads an array of labels, groups or names.

        Raises:
            UserError: as `load`, or the array is too large to be one of these.
        """
        if header.nbytes > _LARGEST:
            raise UserError(
                f"{header.name} is {header}, {header.nbytes:,} bytes, of which {_LARGEST:,} are"
                " allowed: save it with a smaller dtype, or get the file elsewhere"
            )
        return self.load(header)

    def of_images(self, images: NpyHeader, name: str) -> np.ndarray:
        """Loads an array with a value, or a row of values, for each image: (n,) or (n, K), K > 1.

        Raises:
            UserError: as `header` and `load_small`, or there are fewer or more than the images.
        """
        header = self.header(name)
        if header.shape[:1] != images.shape[:1]:
            raise UserError(
                f"{name} has the shape {header.shape}, but {images.name} holds"
                f" {images.shape[0]} images: one of each belongs together"
            )
        values = self.load_small(header)
        return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values

    def rows(self, header: NpyHeader) -> Iterator[np.ndarray]:
        """Reads one row of an array after another, because all of them may not fit into memory.

        Raises:
            UserError: the array is in Fortran order, or the file ends before its last value.
        """
        if header.fortran_order:
            raise UserError(
                f"{header.name} is in Fortran order: save numpy.ascontiguousarray of it"
            )
        shape = header.shape[1:]
        size = math.prod(shape) * header.dtype.itemsize
        with self._archive.open(self._members[header.name]) as stream:
            stream.read(header.offset)
            for _ in range(header.shape[0]):
                content = stream.read(size)
                if len(content) < size:
                    raise UserError(f"{header.name} ends {size - len(content)} bytes too early")
                yield np.frombuffer(content, header.dtype).reshape(shape)
