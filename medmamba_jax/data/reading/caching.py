"""Keeping decoded images: what is kept, and where by the table `cache_places.CACHES`.

Of a split that is augmented, the decoded images are kept, since each epoch crops or turns them in
another way. Of all others, the decoded and resized images are kept. Neither loses anything. What
an earlier run has written to the disk is used, however little room is left there.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset, Split
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.reading.cache_places import CACHES, Need
from medmamba_jax.data.reading.cached_splits import CachedSplit, InMemory, OnDisk, Prepared
from medmamba_jax.errors import UserError

_SHARE = 0.5  # of what is free
_SAMPLED = 16  # images, whose sizes stand for all
_CGROUP = Path("/sys/fs/cgroup")


def cached(
    dataset: Dataset, preprocessing: Preprocessing, config: DataConfig
) -> tuple[Dataset, str]:
    """Returns the data set with its splits behind caches, and where these are, for the log.

    Pixels and order stay as they are. Nothing is decoded here but a sample of images that are to
    be augmented, to know their size, and nothing is written: see `open_caches`.

    Raises:
        UserError: if `config.cache_dir` cannot be written to, or an image cannot be decoded.
    """
    folder = config.cache_folder
    free = {"memory": _SHARE * available_memory(), "disk": _SHARE * _free_disk(folder)}
    splits, texts = {}, []
    for name, split in dataset.splits.items():
        augmented = name == "train" and config.augmentation != "none"
        prepared = Prepared(split, preprocessing, resized=not augmented)
        size = 0 if config.cache == "none" else _size(prepared)
        kind = CACHES[config.cache](Need(size, augmented, config.num_workers, free))
        if kind != "none":
            free[kind] -= size
            images = InMemory(prepared) if kind == "memory" else _on_disk(prepared, folder)
        elif (
            config.cache == "auto" and not augmented and (images := _found(prepared, folder, size))
        ):
            kind = "disk"
        splits[name] = split if kind == "none" else CachedSplit(split, images)
        texts.append(f"{name} {_TEXTS[kind].format(size=_readable(size), folder=folder)}")
    return dataclasses.replace(dataset, splits=splits), ", ".join(texts)


_TEXTS = {
    "none": "not kept",
    "memory": "{size} in memory",
    "disk": "{size} in {folder}",
}


def open_caches(splits: Iterable[Split]) -> None:
    """Opens the caches on disk that hold these splits; files that are missing are written.

    Raises:
        OSError: if one cannot be written.
        UserError: if an image cannot be decoded.
    """
    for split in splits:
        if isinstance(split, CachedSplit) and isinstance(split.images, OnDisk):
            split.images.open()


def available_memory() -> int:
    """Bytes that this process may take, by the system and by the control group it is in."""
    available = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no such group, or no limit
        return available
    return max(min(available, limit - used), 0)


def _size(prepared: Prepared) -> int:
    if prepared.resized:
        height, width = prepared.preprocessing.image_size
        return len(prepared) * height * width * prepared.preprocessing.channels
    rows = np.unique(np.linspace(0, len(prepared) - 1, _SAMPLED).astype(int))
    return int(len(prepared) * np.mean([prepared[int(row)].nbytes for row in rows]))


def _free_disk(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free if os.access(existing, os.W_OK) else 0


def _found(prepared: Prepared, folder: Path, size: int) -> OnDisk | None:
    """The cache on disk, if it exists; images are read for it only if a file is large enough."""
    if any(file.stat().st_size > size for file in folder.glob("*.array_record")):
        images = OnDisk(prepared, folder)
        if images.find():
            return images
    return None


def _on_disk(prepared: Prepared, folder: Path) -> OnDisk:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache_dir: the folder {folder} cannot be made ({error.strerror}); name another"
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"data.cache_dir: {folder} cannot be written to; name another folder")
    return OnDisk(prepared, folder)


def _readable(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
