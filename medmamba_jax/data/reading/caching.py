"""Caches of decoded images. The table `cache_places.CACHES` decides where they are.

The cache of an augmented split holds decoded images at their own size, because each epoch crops or
rotates them differently. The cache of any other split holds decoded and resized images. Neither
changes any pixel. A run uses the cache that an earlier run has written to the disk, even if there
is little disk space left.
"""

import dataclasses
import functools
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.images.decoders import decoder_versions
from medmamba_jax.data.images.preprocessing import Preprocessing, decoded
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.reading.cache_places import CACHES, Need
from medmamba_jax.errors import UserError

_FORMAT = 1  # Increase it when the format of the files changes; a run then ignores older files.
_SHAPE = np.dtype("<u4")  # height, width and channels stand before the pixels
_SHAPE_BYTES = 3 * _SHAPE.itemsize
_WRITTEN_AT_ONCE = 64  # images in memory, at their own size if they are to be augmented
_SHARE = 0.5  # of the free memory or disk space
_SAMPLED = 16  # images; their mean size is taken as the mean size of all images
_CGROUP = Path("/sys/fs/cgroup")


def cached(
    dataset: Dataset, preprocessing: Preprocessing, config: DataConfig
) -> tuple[Dataset, str]:
    """Returns the data set with caches for its splits, and a text with their places for the log.

    Caches do not change pixels or their order. This function writes no cache; `open_caches` does.
    It decodes only a sample of the images that are to be augmented, to measure their size.

    Raises:
        UserError: `config.cache_dir` cannot be written to, or an image cannot be decoded.
    """
    folder = config.cache_folder
    free = {"memory": _SHARE * available_memory(), "disk": _SHARE * _free_disk(folder)}
    splits, texts = {}, []
    kept: InMemory | OnDisk | None
    for name, split in dataset.splits.items():
        augmented = name == "train" and config.augmentation != "none"
        images = DecodedImages(split, preprocessing, resized=not augmented)
        size = 0 if config.cache == "none" else _size(images)
        kept = None
        kind = CACHES[config.cache](Need(size, augmented, config.num_workers, free))
        if kind != "none":
            free[kind] -= size
            kept = InMemory(images) if kind == "memory" else _on_disk(images, folder)
        elif config.cache == "auto" and not augmented and (kept := _found(images, folder, size)):
            kind = "disk"
        splits[name] = (
            split
            if kept is None
            else dataclasses.replace(split, images=kept, places=np.arange(len(split)))
        )
        texts.append(f"{name} {_TEXTS[kind].format(size=_readable(size), folder=folder)}")
    return Dataset(splits), ", ".join(texts)


_TEXTS = {
    "none": "not kept",
    "memory": "{size} in memory",
    "disk": "{size} in {folder}",
}


def open_caches(splits: Iterable[LabelledImages]) -> None:
    """Opens the caches of these splits on disk, and writes those that do not exist.

    Raises:
        OSError: a cache cannot be written.
        UserError: an image cannot be decoded.
    """
    for split in splits:
        if isinstance(split.images, OnDisk):
            split.images.open()


class DecodedImages:
    """The decoded images of a split, uint8 (h, w, c).

    Args:
        split: the images.
        preprocessing: how to decode and resize them.
        resized: whether to resize them. It must be False for images that are to be augmented.
    """

    def __init__(self, split: LabelledImages, preprocessing: Preprocessing, *, resized: bool):
        self.split = split
        self.preprocessing = preprocessing
        self.resized = resized

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> np.ndarray:
        pixels = decoded(self.split, index, self.preprocessing)
        return self.preprocessing.resize(pixels) if self.resized else pixels

    def key(self) -> str:
        """Returns a hash of the files' content and of every setting that changes pixels."""
        settings = self.preprocessing.to_dict()
        for name in (
            ("mean", "std") if self.resized else ("mean", "std", "image_size", "resize_filter")
        ):
            del settings[name]
        key = hashlib.sha256(f"{_FORMAT} {decoder_versions()} {settings}".encode())
        with ThreadPoolExecutor() as pool:
            for content in pool.map(self._content, range(len(self))):
                key.update(content)
        return key.hexdigest()

    def _content(self, index: int) -> bytes:
        return self.split.identity(index, self.split.read(index))


class InMemory:
    """Keeps each image in memory after its first read. Threads may share it, processes cannot."""

    def __init__(self, images: DecodedImages):
        self._images = images
        self._kept: list[np.ndarray | None] = [None] * len(images)

    def __getitem__(self, index: int) -> np.ndarray:
        pixels = self._kept[index]
        if pixels is None:
            pixels = self._kept[index] = self._images[index]
        return pixels


class OnDisk:
    """Keeps all images in an ArrayRecord file. `open` or the first read writes the file.

    The content of the images and their preprocessing determine the name of the file. So a later run
    with the same images uses the file, and a run with other images does not. The file gets its name
    when it is complete.

    Args:
        images: the images.
        folder: the folder of the file. It is created if it does not exist.
    """

    def __init__(self, images: DecodedImages, folder: Path):
        self._images = images
        self._folder = folder
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._reader: Any = None

    @functools.cached_property
    def _path(self) -> Path:
        return self._folder / f"{self._images.key()}.array_record"

    def __getitem__(self, index: int) -> np.ndarray:
        if self._reader is None:
            self.open()
        try:
            (record,) = self._reader.read([index])
        except RuntimeError as error:
            raise OSError(f"{self._path} is damaged ({error}): delete it") from error
        shape = np.frombuffer(record, _SHAPE, 3)
        return np.frombuffer(record, np.uint8, offset=_SHAPE_BYTES).reshape(shape)

    def open(self) -> None:
        """Opens the file. If the file does not exist or is incomplete, it is written first.

        Raises:
            OSError: the file cannot be written.
            UserError: an image cannot be decoded.
        """
        with self._lock:
            if not self._found():
                self._write()
                self._reader = self._existing()

    def find(self) -> bool:
        """Opens the file if it exists and is complete; returns whether it could.

        The first call reads every image file to compute the name of the cache file.
        """
        with self._lock:
            return self._found()

    def _found(self) -> bool:
        if self._reader is None:
            self._reader = self._existing()
        return self._reader is not None

    def _existing(self) -> Any:
        from array_record.python import array_record_module

        if not self._path.is_file():
            return None
        try:
            reader = array_record_module.ArrayRecordReader(
                str(self._path), "readahead_buffer_size:0"
            )
            return reader if reader.num_records() == len(self._images) else None
        except (RuntimeError, ValueError):  # another kind of file has this name
            return None

    def _write(self) -> None:
        from array_record.python import array_record_module

        self._folder.mkdir(parents=True, exist_ok=True)
        # `write_atomically` takes the whole content at once, but the images may not fit into
        # memory.
        partial = self._path.with_suffix(f".{os.getpid()}-{uuid.uuid4().hex}.partial")
        count = len(self._images)
        try:
            # Reading compressed records would take longer than decoding many image files.
            writer = array_record_module.ArrayRecordWriter(
                str(partial), "group_size:1,uncompressed"
            )
            with (
                ThreadPoolExecutor(usable_cpus()) as pool,
                tqdm(total=count, desc="caching", unit="image", leave=False, disable=None) as bar,
            ):
                for start in range(0, count, _WRITTEN_AT_ONCE):
                    rows = range(start, min(start + _WRITTEN_AT_ONCE, count))
                    for pixels in pool.map(self._images.__getitem__, rows):
                        writer.write(np.array(pixels.shape, _SHAPE).tobytes() + pixels.tobytes())
                        bar.update()
            writer.close()
            partial.replace(self._path)
        except RuntimeError as error:
            reason = str(error).partition(";")[0]  # what follows names the file again
            raise OSError(
                f"cannot write the cache in {self._folder} ({reason}): make room, or set"
                " data.cache_dir to another folder or data.cache to none"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        self.open()  # once, in the process that starts the workers
        return self.__dict__ | {"_lock": None, "_reader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def available_memory() -> int:
    """Returns the free bytes of memory, within the limit of this process's control group."""
    available = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # there is no control group, or it has no limit
        return available
    return max(min(available, limit - used), 0)


def _size(images: DecodedImages) -> int:
    if images.resized:
        height, width = images.preprocessing.image_size
        return len(images) * height * width * images.preprocessing.channels
    rows = np.unique(np.linspace(0, len(images) - 1, _SAMPLED).astype(int))
    return int(len(images) * np.mean([images[int(row)].nbytes for row in rows]))


def _free_disk(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free if os.access(existing, os.W_OK) else 0


def _found(images: DecodedImages, folder: Path, size: int) -> OnDisk | None:
    """Returns the cache on disk if it exists, else None.

    Computing its name reads all images, so this happens only if some cache file is large enough.
    """
    if any(file.stat().st_size > size for file in folder.glob("*.array_record")):
        kept = OnDisk(images, folder)
        if kept.find():
            return kept
    return None


def _on_disk(images: DecodedImages, folder: Path) -> OnDisk:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache_dir: the folder {folder} cannot be made ({error.strerror}); name another"
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"data.cache_dir: {folder} cannot be written to; name another folder")
    return OnDisk(images, folder)


def _readable(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
