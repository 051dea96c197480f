"""A split in which every frame of a file is a separate image."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.dataset import Example, Split
from medmamba_jax.data.images.decoding import count_frames, open_image, parsed
from medmamba_jax.data.images.dicom import DicomFile
from medmamba_jax.data.images.windowing import Window
from medmamba_jax.data.naming import short_name
from medmamba_jax.errors import UserError


class AllFrames:
    """A split in which each frame of a file is an image with the file's label and weight.

    All frames of a file stay in the split and in the group of the file. If the split has no groups,
    each file becomes a group.

    Args:
        split: files with one or more frames, or arrays.
        window: which intensities of images with more than 8 bits become 0..255; see
            `DataConfig.window`.

    Attributes:
        files: the split of files.

    Raises:
        DataUnavailableError: there are DICOM files and pydicom is not installed.
        UserError: the frames of a file cannot be counted; the message names the file.
    """

    def __init__(self, split: Split, window: Window = "auto"):
        self.files = split
        self._window = window
        self._opened: tuple[int, dict[str, Any]] | None = None
        with ThreadPoolExecutor(usable_cpus()) as pool:
            counts = np.fromiter(pool.map(self._count, range(len(split))), int, len(split))
        self._file = np.repeat(np.arange(len(split)), counts)
        self._frames = np.concatenate([np.arange(0), *map(np.arange, counts)])
        self.labels = split.labels[self._file]
        groups = split.groups
        if groups is None:
            groups = np.array([split.describe(index) for index in range(len(split))], np.str_)
        self.groups = groups[self._file]
        self.weights = None if split.weights is None else split.weights[self._file]

    def _count(self, index: int) -> int:
        image = self.files[index]["image"]
        if isinstance(image, np.ndarray):
            return 1
        try:
            return count_frames(image)
        except ValueError as error:
            raise UserError(f"{self.files.describe(index)}: {error}") from error

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index: int) -> Example:
        example = self._open(int(self._file[index]))
        pixels = open_image(example["image"], window=self._window, frame=int(self._frames[index]))
        return {"image": np.asarray(pixels), "label": example["label"]}

    def _open(self, row: int) -> dict[str, Any]:
        """Reads a file, and keeps it until the next: readers mostly take frames in their order."""
        opened = self._opened
        if opened is None or opened[0] != row:
            example = self.files[row]
            self._opened = opened = row, example | {"image": parsed(example["image"])}
        return opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def has_window(self, index: int) -> bool | None:
        """Whether a DICOM file contains the window of a grey frame; None for other frames."""
        file = self._open(int(self._file[index]))["image"]
        return file.has_window(int(self._frames[index])) if isinstance(file, DicomFile) else None

    def name(self, index: int) -> str:
        return f"{short_name(self.files, int(self._file[index]))}, frame {self._frames[index]}"

    def describe(self, index: int) -> str:
        return f"{self.files.describe(int(self._file[index]))}, frame {self._frames[index]}"

    def digest(self) -> str:
        frames = f"{self.files.digest()} {self._file.tolist()} {self._window}"
        return hashlib.sha256(frames.encode()).hexdigest()
