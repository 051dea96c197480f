"""Reading the images of an npz file with the arrays of MedMNIST, one at a time, as PNG."""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from medmamba_jax.data.public.facts import PublicImage

_SPLITS = ("train", "val", "test")
_PNG_COMPRESSION = 3  # at 224 px 2.5 times faster than Pillow's 6, and no larger


def read_npz(
    location: Path, file_name: str, shape: tuple[int, ...], num_classes: int
) -> Iterator[PublicImage]:
    """Reads an npz file an image at a time: the largest would fill 13 GB.

    Args:
        location: the file.
        file_name: what it should be called; for messages.
        shape: of an image.
        num_classes: labels are below it.

    Raises:
        zipfile.BadZipFile: if the file is damaged.
        ValueError: if `location` is a folder, or an array is missing, pickled, cut off, or of
            another shape or dtype.
    """
    if location.is_dir():
        raise ValueError(f"it holds no file {file_name}")
    with zipfile.ZipFile(location) as archive:
        labels = {split: _labels(archive, split, num_classes) for split in _SPLITS}
        for split in _SPLITS:
            with _array(archive, f"{split}_images") as (stream, dtype, found):
                expected = (len(labels[split]), *shape)
                if dtype != np.uint8 or found != expected:
                    raise ValueError(
                        f"{split}_images is {dtype} {found}, but should be uint8 {expected}"
                    )
                for i, label in enumerate(labels[split]):
                    yield PublicImage(
                        f"{split}_images[{i:06d}]",
                        _png(_values(stream, dtype, shape).reshape(shape)),
                        label,
                        split=split,
                    )


def _labels(archive: zipfile.ZipFile, split: str, num_classes: int) -> list[int]:
    with _array(archive, f"{split}_labels") as (stream, dtype, shape):
        # One column, as published, or a vector, as some re-saved files have.
        is_column = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
        if not (np.issubdtype(dtype, np.integer) and is_column):
            raise ValueError(
                f"{split}_labels is {dtype} {shape}, but should be integers (n, 1) or (n,)"
            )
        labels = _values(stream, dtype, shape)
    for wrong in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
        raise ValueError(
            f"{split}_labels[{wrong}] is {labels[wrong]}, but there are {num_classes} classes"
            f" (0..{num_classes - 1})"
        )
    return labels.tolist()


@contextlib.contextmanager
def _array(
    archive: zipfile.ZipFile, name: str
) -> Iterator[tuple[BinaryIO, np.dtype, tuple[int, ...]]]:
    """Opens an array of an npz file; gives its bytes, dtype and shape. Never unpickles."""
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"there is no array {name!r} in it; it has {archive.namelist()}")
    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{name} is in version {version} of the npy format: save it again")
        shape, fortran_order, dtype = read_header(stream)
        if dtype.hasobject:
            raise ValueError(
                f"{name} is pickled, and unpickling runs whatever code is in it: save it again as"
                " an array of numbers"
            )
        if fortran_order:
            raise ValueError(f"{name} is in Fortran order: save numpy.ascontiguousarray of it")
        yield stream, dtype, shape


def _values(stream: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    values = math.prod(shape)
    content = stream.read(values * dtype.itemsize)
    if len(content) < values * dtype.itemsize:
        raise ValueError(f"an array ends {values * dtype.itemsize - len(content)} bytes too early")
    return np.frombuffer(content, dtype)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=_PNG_COMPRESSION)
    return buffer.getvalue()
