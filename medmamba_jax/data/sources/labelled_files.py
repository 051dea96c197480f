"""Labelled image files below a folder."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.dataset import Example, digest
from medmamba_jax.data.images.decoding import count_frames, open_image
from medmamba_jax.data.images.preprocessing import ALL_FRAMES
from medmamba_jax.data.naming import listed
from medmamba_jax.errors import UserError


class FileSplit:
    """Image files and their labels. `split[i]` reads file i.

    Args:
        root: a folder.
        names: the paths of the files below the folder, with "/" between folders (n,).
        labels: as in `Split`.
        groups: as in `Split`.
        weights: as in `Split`.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: np.ndarray,
        groups: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ):
        self.root = root
        self.names = tuple(names)
        self.labels = labels
        self.groups = groups
        self.weights = weights

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        label = self.labels[index]
        return {
            "image": self._path(index).read_bytes(),
            "label": label if label.ndim else int(label),
        }

    def name(self, index: int) -> str:
        """Names image `index` by its path below the root."""
        return self.names[index]

    def describe(self, index: int) -> str:
        return str(self._path(index))

    def digest(self) -> str:
        """Identifies images by their path below the root, which may move, and their size."""
        return digest(
            self.labels,
            (
                f"{self._path(index).stat().st_size} {name}".encode()
                for index, name in enumerate(self.names)
            ),
            self.weights,
        )

    def contents(self) -> str:
        """Reads all files and returns a hash of their content."""

        def content(index: int) -> bytes:
            return hashlib.sha256(self._path(index).read_bytes()).digest()

        with ThreadPoolExecutor() as pool:
            return hashlib.sha256(b"".join(pool.map(content, range(len(self))))).hexdigest()

    def take(self, rows: np.ndarray) -> "FileSplit":
        """Returns the images of these rows."""
        return FileSplit(
            self.root,
            [self.names[row] for row in rows],
            self.labels[rows],
            None if self.groups is None else self.groups[rows],
            None if self.weights is None else self.weights[rows],
        )

    def _path(self, index: int) -> Path:
        return self.root / self.names[index]


def require_some_of_each(assigned: np.ndarray, kept: np.ndarray) -> None:
    """Raises UserError if a split loses all its images.

    Args:
        assigned: the split of each image (n,).
        kept: whether the image can be read, bool (n,).
    """
    for split in np.unique(assigned):
        if not (assigned[kept] == split).any():
            raise UserError(
                f"none of the {(assigned == split).sum()} image files of {split} can be read:"
                " replace them"
            )


def readable(root: Path, names: Sequence[str], config: DataConfig) -> np.ndarray:
    """Decodes every file with the settings of the configuration, and logs the damaged ones.

    Returns:
        Whether each file can be read, bool (n,).
    """

    def problem(name: str) -> str | None:
        try:
            image = (root / name).read_bytes()
            every = config.frame == ALL_FRAMES
            for frame in range(count_frames(image)) if every else (config.frame,):
                open_image(image, window=config.window, frame=frame)
        except (OSError, ValueError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor(usable_cpus()) as pool:
        problems = list(pool.map(problem, names))
    unreadable = [
        f"{root / name} ({why})" for name, why in zip(names, problems, strict=True) if why
    ]
    if unreadable:
        logging.warning(
            "%d of %d image files cannot be read: %s. Dropped, as data.allow_unreadable is set",
            len(unreadable),
            len(names),
            listed(unreadable),
        )
    return np.array([why is None for why in problems], bool)
