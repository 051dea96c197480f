"""Labelled files become labelled frames: every frame of a file is an image of its own."""

import dataclasses
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging

from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.images.decoding import open_image, parsed
from medmamba_jax.data.images.formats import format_of
from medmamba_jax.data.images.image_file import MAX_PIXELS, ImageFile
from medmamba_jax.data.images.preprocessing import ALL_FRAMES
from medmamba_jax.data.images.windowing import Window
from medmamba_jax.data.labelled_images import LabelledImages, content_hash
from medmamba_jax.errors import UserError

_MOST_OPEN = 32  # files
_SINGLE = ("PNG", "JPEG", "BMP")  # formats of one frame, whose headers need not be parsed


def all_frames(
    files: LabelledImages, window: Window = "auto", max_pixels: int = MAX_PIXELS
) -> LabelledImages:
    """Returns the frames of all files, each with the label, group and weight of its file.

    Args:
        files: files with one or more frames, or arrays.
        window: which intensities of images with more than 8 bits become 0..255; see
            `DataConfig.window`.
        max_pixels: the most pixels of a frame.

    Raises:
        DataUnavailableError: the package that reads the files is missing.
        UserError: the frames of a file cannot be counted; the message names the file.
    """

    def count(row: int) -> int:
        try:
            return parsed(files.read(row)).count_frames()
        except ValueError as error:
            raise UserError(f"{files.describe(row)}: {error}") from error

    with ThreadPoolExecutor(usable_cpus()) as pool:
        counts = np.fromiter(pool.map(count, range(len(files))), int, len(files))
    file_of = np.repeat(np.arange(len(files)), counts)
    frame_of = np.concatenate([np.arange(0), *map(np.arange, counts)])
    frames = files.take(file_of)
    return dataclasses.replace(
        frames,
        images=_Frames(files, file_of, frame_of, window, max_pixels),
        places=np.arange(len(file_of)),
        names=tuple(f"{name}, frame {k}" for name, k in zip(frames.names, frame_of, strict=True)),
        files=np.array(frames.names),
    )


def frames_in(image: bytes | np.ndarray) -> int:
    """Returns the number of frames of an image; 1 if it is damaged."""
    format = None if isinstance(image, np.ndarray) else format_of(image)
    if format is None or format.open is None or format.name in _SINGLE:
        return 1
    try:
        return parsed(image).count_frames()
    except ValueError:
        return 1


def note_frames(counts: np.ndarray, frame: int) -> None:
    """Warns of files with several frames, if only the first frame of each is read.

    Args:
        counts: the number of frames of each image (n,).
        frame: the setting `data.frame`.
    """
    several = np.unique(counts[counts > 1])
    if frame == 0 and len(several):
        logging.warning(
            "%d files have %s frames, and frame 0 of each is read: data.frame=NUMBER chooses"
            " another, and data.frame=%d makes each frame an image",
            (counts > 1).sum(),
            several[0] if len(several) == 1 else f"{several[0]} to {several[-1]}",
            ALL_FRAMES,
        )


class _Frames:
    """Single frames as arrays, uint8; see `all_frames`."""

    def __init__(
        self,
        files: LabelledImages,
        file_of: np.ndarray,
        frame_of: np.ndarray,
        window: Window,
        max_pixels: int,
    ):
        self._files = files
        self._file_of = file_of
        self._frame_of = frame_of
        self._window = window
        self._max_pixels = max_pixels
        # thread -> row, and of its file the object that reads frames, and the content hash
        self._opened: dict[int, tuple[int, ImageFile, bytes]] = {}

    def __getitem__(self, place: int) -> np.ndarray:
        file, _ = self._open(place)
        frame = int(self._frame_of[place])
        opened = open_image(file, window=self._window, frame=frame, max_pixels=self._max_pixels)
        return np.asarray(opened)

    def identity(self, place: int, image: object = None) -> bytes:
        """Returns the hash of the file's content, the frame's number, and the window."""
        frame = f" {self._frame_of[place]} {self._window}"
        return hashlib.sha256(self._open(place)[1] + frame.encode()).digest()

    def file(self, place: int, image: object = None) -> bytes | np.ndarray:
        """Returns the bytes of the file; an array if the frame is one."""
        return self._open(place)[0].content

    def _open(self, place: int) -> tuple[ImageFile, bytes]:
        """Reads a file, and keeps it until the next: threads mostly take frames in their order."""
        thread, row = threading.get_ident(), int(self._file_of[place])
        opened = self._opened.get(thread)
        if opened is None or opened[0] != row:
            if len(self._opened) >= _MOST_OPEN:  # of threads that have ended
                self._opened = {}
            file = self._files.read(row)
            opened = self._opened[thread] = row, parsed(file), content_hash(file)
        return opened[1:]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}
