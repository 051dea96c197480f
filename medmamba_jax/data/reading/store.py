"""The one place that makes pixels, and keeps them in memory or on the disk.

What is kept of images that are to be augmented is decoded and has its own size, because each epoch
crops or rotates an image differently. What is kept of other images is also resized. Neither changes
any pixel.
"""

import os
import threading
import uuid
import weakref
from pathlib import Path
from typing import Self

import numpy as np

from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.errors import UserError

_SHAPE = np.dtype("<u4")  # height, width and channels of each image, after all pixels
_END = b"medmamba pixels\x01"  # the last byte is the version of the format


class _NamedError(UserError):
    """An image cannot be decoded; the message names it already."""


def decoded(split: LabelledImages, index: int, preprocessing: Preprocessing) -> np.ndarray:
    """Reads and decodes an image; returns uint8 (h, w, channels).

    Raises:
        UserError: the image cannot be decoded; the message names it.
    """
    try:
        return preprocessing.decode(split.read(index))
    except _NamedError:
        raise
    except ValueError as error:
        raise _NamedError(f"{split.describe(index)}: {error}") from error


class Store:
    """The pixels of labelled images, uint8 (h, w, c) by place; see `labelled_images.Images`.

    Args:
        source: the images.
        preprocessing: how to decode and resize them.
        resized: whether to resize the images, which are then not to be augmented.

    Attributes:
        identities: the content hash of each image, uint8 (n, 32), from the first pass on.
        resized: the same as the argument for each image, bool (n,).
        in_memory: place -> what is kept of an image; None until it is first read.
    """

    def __init__(self, source: LabelledImages, preprocessing: Preprocessing, *, resized: bool):
        self.source = source
        self.preprocessing = preprocessing
        self.identities: np.ndarray | None = None
        self.resized = np.full(len(source), resized)
        self.in_memory: dict[int, np.ndarray | None] = {}
        self._on_disk: dict[int, tuple[OnDisk, int]] = {}

    def __getitem__(self, place: int) -> np.ndarray:
        if place in self._on_disk:
            file, record = self._on_disk[place]
            return file[record]
        pixels = self.in_memory.get(place)
        if pixels is None:
            pixels = self.make(place)
            if place in self.in_memory:
                self.in_memory[place] = pixels
        return pixels

    def identity(self, place: int, image: object = None) -> bytes:
        """Returns the content hash of an image; `image` are its pixels, which need no hash."""
        if self.identities is None:
            return self.source.identity(place)
        return self.identities[place].tobytes()

    def read(self, place: int) -> bytes | np.ndarray:
        """Returns the image as its source has it."""
        return self.source.read(place)

    def make(self, place: int) -> np.ndarray:
        """Reads and decodes an image, and resizes it if it is to be kept so.

        Raises:
            UserError: the image cannot be decoded; the message names it.
        """
        return self.fit(place, decoded(self.source, place, self.preprocessing))

    def fit(self, place: int, pixels: np.ndarray) -> np.ndarray:
        """Returns decoded pixels in the form in which this image is kept."""
        return self.preprocessing.resize(pixels) if self.resized[place] else pixels

    def resize(self, places: np.ndarray) -> None:
        """Resizes what is kept of these images, which are not to be augmented after all."""
        self.resized[places] = True
        for place in places.tolist():
            pixels = self.in_memory.get(place)
            if pixels is not None:
                self.in_memory[place] = self.fit(place, pixels)

    def forget(self, places: np.ndarray) -> None:
        """Frees the pixels of these images that are in memory.

        The next access takes an image from the disk cache, or decodes its file again.
        """
        for place in places.tolist():
            self.in_memory.pop(place, None)

    def keep_on_disk(self, places: np.ndarray, file: "OnDisk", records: np.ndarray) -> None:
        """Takes these images from the records of a file."""
        pairs = zip(places.tolist(), records.tolist(), strict=True)
        self._on_disk |= {place: (file, record) for place, record in pairs}


class OnDisk:
    """Pixels of images in a file, one after the other. Threads and processes may share it.

    The pages of a mapped file would count as memory of this process, so images are read instead.
    """

    def __init__(self, path: Path):
        self.path = path
        tail = len(_END) + 8
        try:
            with path.open("rb") as file:
                size = file.seek(-tail, os.SEEK_END) + tail
                count = int.from_bytes(file.read(8), "little")
                if file.read() != _END:
                    raise ValueError
                table = 3 * _SHAPE.itemsize * count
                file.seek(-tail - table, os.SEEK_END)
                self.shapes = np.frombuffer(file.read(table), _SHAPE).reshape(count, 3)
        except (OSError, ValueError):
            raise ValueError(f"{path} is no complete file of pixels") from None
        self._ends = self.shapes.prod(1, dtype=np.int64).cumsum()
        if size != (self._ends[-1] if count else 0) + table + tail:
            raise ValueError(f"{path} is no complete file of pixels")
        # The file stays open, so that the folder may be deleted while a run reads it.
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        self._lock = threading.Lock()

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """Opens a file if it exists and is complete."""
        try:
            return cls(path)
        except (OSError, ValueError):
            return None

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, record: int) -> np.ndarray:
        shape = self.shapes[record]
        count = int(shape.prod(dtype=np.int64))
        start = int(self._ends[record]) - count
        if hasattr(os, "pread"):
            content = os.pread(self._file, count, start)
        else:  # Windows
            with self._lock:
                os.lseek(self._file, start, os.SEEK_SET)
                content = os.read(self._file, count)
        if len(content) < count:
            raise OSError(f"{self.path} is damaged: delete it")
        return np.frombuffer(content, np.uint8).reshape(shape)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.path,)  # a copy in another process opens the file again


class Writer:
    """Writes the file of `OnDisk`, image by image. It gets its name when it is complete."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._shapes: list[tuple[int, ...]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._partial = folder / f"{os.getpid()}-{uuid.uuid4().hex}.partial"
            self._file = self._partial.open("xb")
        except OSError as error:
            raise UserError(
                f"data.cache_dir: {folder} cannot be written to ({error.strerror}); name another"
                " folder"
            ) from error

    def append(self, pixels: np.ndarray | None) -> None:
        """Adds an image; None is an image that cannot be read."""
        self._shapes.append((0, 0, 0) if pixels is None else pixels.shape)
        if pixels is not None:
            self._write(np.ascontiguousarray(pixels).data)

    def finish(self, path: Path) -> OnDisk:
        """Completes the file under this name, and opens it."""
        self._write(np.array(self._shapes, _SHAPE).reshape(-1, 3).tobytes())
        self._write(len(self._shapes).to_bytes(8, "little") + _END)
        self._file.close()
        self._partial.replace(path)
        return OnDisk(path)

    def _write(self, content: bytes | memoryview) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            raise OSError(
                f"cannot write the cache in {self._folder} ({error.strerror}): make room, or set"
                " data.cache_dir to another folder or data.cache to none"
            ) from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._file.close()
        except OSError:  # the disk is full; an error has said so already
            pass
        self._partial.unlink(missing_ok=True)
