"""What a data set is: named classes and splits of labelled images."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypedDict

import numpy as np


class DataUnavailableError(RuntimeError):
    """The images cannot be had from here; the message says how to get them."""


TASKS = ("multiclass", "multilabel")


class Example(TypedDict):
    """One labelled image.

    image: the bytes of an image file, or an array (h, w) or (h, w, c).
    label: index into `Dataset.class_names`; of a multi-label set float32 (K,), see `Split`.
    """

    image: bytes | np.ndarray
    label: int | np.ndarray


class Split(Protocol):
    """Random access to labelled images.

    `labels` is known without decoding any image, and `split[i]["label"] == split.labels[i]`:
    integers (n,); of a multi-label set float32 (n, K), 1 where image i shows class k, 0 where it
    does not, NaN where that is not known. `groups` names what image i belongs to, most often its
    patient, as strings (n,), or is None: images of one group belong into one split. With
    `num_workers > 0` the split travels to worker processes, so it has to be picklable. Reading
    threads call `split[i]` concurrently.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def groups(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def describe(self, index: int) -> str:
        """Names image `index` for a message: its file, or where else the user finds it."""
        ...

    def digest(self) -> str:
        """Tells this split from one with other images, labels or order; see `digest`."""
        ...


def digest(labels: np.ndarray, identities: Iterable[bytes]) -> str:
    """Returns the SHA-256 of labels (n,) and what identifies their images, in order."""
    total = hashlib.sha256()
    for label, identity in zip(np.asarray(labels).tolist(), identities, strict=True):
        # A digest each, so that no two lists of images run together to the same bytes.
        total.update(label.to_bytes(8, "little") + hashlib.sha256(identity).digest())
    return total.hexdigest()


class InMemorySplit:
    """A split whose images are already in memory.

    Args:
        images: n images, each as in `Example`; an array (n, h, w[, c]) will do.
        labels: integers (n,).
        groups: what each image belongs to, (n,); see `Split`.

    Raises:
        ValueError: if the lengths differ, or the labels are not a vector of integers.
    """

    def __init__(
        self,
        images: Sequence[bytes | np.ndarray] | np.ndarray,
        labels: Sequence[int],
        groups: Sequence[str] | None = None,
    ):
        self.labels = np.asarray(labels)
        self.groups = None if groups is None else np.asarray(groups).astype(str)
        if self.labels.ndim != 1 or not np.issubdtype(self.labels.dtype, np.integer):
            raise ValueError(
                "labels must be a vector of integers;"
                f" got shape {self.labels.shape}, dtype {self.labels.dtype}"
            )
        if len(images) != len(self.labels):
            raise ValueError(f"got {len(images)} images but {len(self.labels)} labels")
        if self.groups is not None and self.groups.shape != self.labels.shape:
            raise ValueError(f"got {len(images)} images but groups of shape {self.groups.shape}")
        self._images = images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return {"image": self._images[index], "label": int(self.labels[index])}

    def describe(self, index: int) -> str:
        return f"image {index}"

    def digest(self) -> str:
        """Identifies images by their bytes or pixels."""
        return digest(self.labels, map(_content, self._images))


def _content(image: bytes | np.ndarray) -> bytes:
    if isinstance(image, bytes):
        return image
    return f"{image.dtype} {image.shape} ".encode() + image.tobytes()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images, split for training, validation and testing.

    Attributes:
        name: short name for logs and reports.
        description: one line saying what the images are.
        class_names: label -> name.
        splits: split name -> images; the training program reads "train", "val" and "test".
        synthetic: whether the images are drawn by a program; reports must say so.

    Raises:
        ValueError: if there are fewer than two classes, two share a name, or a split holds a
            label that no class has.
    """

    name: str
    description: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    synthetic: bool

    def __post_init__(self):
        if len(self.class_names) < 2 or len(set(self.class_names)) < len(self.class_names):
            raise ValueError(
                f"a data set needs two or more distinct classes; got {self.class_names}"
            )
        for name, split in self.splits.items():
            labels = np.asarray(split.labels)
            if labels.size and not (0 <= labels.min() and labels.max() < len(self.class_names)):
                raise ValueError(
                    f"labels of split {name!r} run from {labels.min()} to {labels.max()}, but"
                    f" there are {len(self.class_names)} classes (0..{len(self.class_names) - 1})"
                )

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns split -> class name -> number of images, without decoding any."""
        return {
            split_name: dict(
                zip(
                    self.class_names,
                    np.bincount(split.labels, minlength=len(self.class_names)).tolist(),
                    strict=True,
                )
            )
            for split_name, split in self.splits.items()
        }
