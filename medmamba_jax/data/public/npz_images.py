"""Reads the images of an npz file with the arrays of MedMNIST, one at a time, as PNG."""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from medmamba_jax.data.public.facts import PublicImage
from medmamba_jax.data.sources.npy_header import NpyHeader, read_npy_header
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.errors import UserError

_PNG_COMPRESSION = 3  # at 224 px 2.5 times faster than Pillow's default 6; files are not larger


def read_npz(
    location: Path, file_name: str, shape: tuple[int, ...], num_classes: int
) -> Iterator[PublicImage]:
    """Reads one image at a time from an npz file, because the largest file would fill 13 GB.

    Args:
        location: the file.
        file_name: the published name of the file, for messages.
        shape: the shape of an image.
        num_classes: number of classes; labels are 0 to `num_classes` - 1.

    Raises:
        zipfile.BadZipFile: the file is damaged.
        UserError: `location` is a folder, or an array is missing, pickled, cut off, or of
            another shape or dtype.
    """
    if location.is_dir():
        raise UserError(f"it holds no file {file_name}")
    with zipfile.ZipFile(location) as archive:
        # Check the number of images before labels are loaded: a damaged file may hold any number.
        counts = {split: _count(archive, split, shape) for split in SPLITS}
        labels = {split: _labels(archive, split, counts[split], num_classes) for split in SPLITS}
        for split in SPLITS:
            with _array(archive, f"{split}_images") as (stream, header):
                for i, label in enumerate(labels[split]):
                    yield PublicImage(
                        f"{split}_images[{i:06d}]",
                        _png(_values(stream, header.dtype, shape)),
                        int(label),
                        split=split,
                    )


def _count(archive: zipfile.ZipFile, split: str, shape: tuple[int, ...]) -> int:
    header = _header(archive, f"{split}_images")
    expected = (*header.shape[:1], *shape)
    if header.dtype != np.uint8 or header.shape != expected:
        raise UserError(f"{header.name} is {header}, but should be uint8 {expected}")
    return header.shape[0]


def _labels(archive: zipfile.ZipFile, split: str, count: int, num_classes: int) -> np.ndarray:
    with _array(archive, f"{split}_labels") as (stream, header):
        # The published files have one column. Some files that were saved again have a vector.
        if not (np.issubdtype(header.dtype, np.integer) and header.shape in ((count, 1), (count,))):
            raise UserError(
                f"{header.name} is {header}, but should be integers ({count}, 1) or ({count},), one"
                f" for each of {split}_images"
            )
        header.require_small()
        labels = _values(stream, header.dtype, (count,))
    for wrong in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
        raise UserError(
            f"{split}_labels[{wrong}] is {labels[wrong]}, but there are {num_classes} classes"
            f" (0..{num_classes - 1})"
        )
    return labels


def _header(archive: zipfile.ZipFile, name: str) -> NpyHeader:
    """Returns the header of an array, which must be readable one value after another."""
    if f"{name}.npy" not in archive.namelist():
        raise UserError(f"there is no array {name!r} in it; it has {archive.namelist()}")
    header = read_npy_header(archive, name)
    if header.dtype.hasobject:
        raise UserError(
            f"{name} is pickled, and unpickling would run any code in it: save it again as an array"
            " of numbers"
        )
    if header.fortran_order:
        raise UserError(f"{name} is in Fortran order: save numpy.ascontiguousarray of it")
    return header


@contextlib.contextmanager
def _array(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], NpyHeader]]:
    """Opens an array of an npz file and skips its header."""
    header = _header(archive, name)
    with archive.open(f"{name}.npy") as stream:
        stream.read(header.offset)
        yield stream, header


def _values(stream: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    values = math.prod(shape)
    content = stream.read(values * dtype.itemsize)
    if len(content) < values * dtype.itemsize:
        raise UserError(f"an array ends {values * dtype.itemsize - len(content)} bytes too early")
    return np.frombuffer(content, dtype).reshape(shape)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=_PNG_COMPRESSION)
    return buffer.getvalue()
