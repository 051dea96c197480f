"""Data sets: named classes, and splits of labelled images."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from medmamba_jax.data.labels import as_labels, check_multiclass, check_multilabel, class_counts
from medmamba_jax.data.weights import as_weights
from medmamba_jax.errors import UserError

TASKS = ("multiclass", "multilabel")


class Example(TypedDict):
    """One labelled image.

    image: the bytes of an image file, or an array (h, w) or (h, w, c).
    label: an index into `Dataset.class_names`; in a multi-label set float32 (K,), see `Split`.
    """

    image: bytes | np.ndarray
    label: int | np.ndarray


class Split(Protocol):
    """Random access to labelled images.

    `labels` can be read without decoding any image, and `split[i]["label"] == split.labels[i]`.
    They are integers (n,). In a multi-label set they are float32 (n, K): 1 where image i shows
    class k, 0 where it does not, NaN where that is not known.

    `groups` holds the group of each image, most often its patient, as strings (n,). All images of
    a group belong in one split. None means that the groups are not known.

    `weights` holds how much each image counts in the training loss, float32 (n,), positive and
    finite. None means that all images count alike.

    With `num_workers > 0` the split is sent to worker processes, so pickle must be able to copy it.
    Reading threads call `split[i]` concurrently.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def groups(self) -> np.ndarray | None: ...

    @property
    def weights(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def describe(self, index: int) -> str:
        """Names image `index` in a message: its file, or another place where the user finds it."""
        ...

    def digest(self) -> str:
        """Returns a hash of the images, labels, weights and order; see `digest`."""
        ...


def digest(
    labels: np.ndarray, identities: Iterable[bytes], weights: np.ndarray | None = None
) -> str:
    """Returns the SHA-256 of labels, identities and weights, in their order.

    Args:
        labels: (n,) or (n, K).
        identities: n byte strings, each of which identifies an image.
        weights: float32 (n,), or None.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2:  # another NaN, a negative zero or another dtype gives the same bytes
        total = hashlib.sha256(f"{labels.shape} ".encode())
        rows: Iterable[bytes] = map(bytes, np.where(np.isnan(labels), 2, labels).astype(np.uint8))
    else:
        total = hashlib.sha256()
        rows = (label.to_bytes(8, "little") for label in labels.tolist())
    for label, identity in zip(rows, identities, strict=True):
        # Each identity is hashed first, so that two different lists cannot join to the same bytes.
        total.update(label + hashlib.sha256(identity).digest())
    if weights is not None:
        total.update(b"weights" + weights.astype("<f4").tobytes())
    return total.hexdigest()


class InMemorySplit:
    """A split whose images are already in memory.

    Args:
        images: n images, each as in `Example`, or one array (n, h, w[, c]).
        labels: integers (n,); in a multi-label set numbers (n, K): 1, 0, and NaN or -1 where the
            class is not known.
        groups: the group of each image, (n,); see `Split`.
        names: the name of each image in messages and tables, (n,); "image 0" and so on if None.
        weights: how much each image counts in the training loss, (n,); see `Split`.

    Raises:
        UserError: the lengths differ, the labels are not of an allowed kind, or a weight is not
            positive and finite.
    """

    def __init__(
        self,
        images: Sequence[bytes | np.ndarray] | np.ndarray,
        labels: ArrayLike,
        groups: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        weights: ArrayLike | None = None,
    ):
        self.labels = as_labels(labels)
        self.groups = None if groups is None else np.asarray(groups).astype(str)
        if len(images) != len(self.labels):
            raise UserError(f"got {len(images)} images but {len(self.labels)} labels")
        if self.groups is not None and self.groups.shape != (len(images),):
            raise UserError(f"got {len(images)} images but groups of shape {self.groups.shape}")
        if names is not None and len(names) != len(images):
            raise UserError(f"got {len(images)} images but {len(names)} names")
        self._images = images
        self._names = names
        self.weights = (
            None if weights is None else as_weights(weights, len(images), "weights", self.name)
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        label = self.labels[index]
        return {"image": self._images[index], "label": label if label.ndim else int(label)}

    def name(self, index: int) -> str:
        return f"image {index}" if self._names is None else self._names[index]

    def describe(self, index: int) -> str:
        return self.name(index)

    def digest(self) -> str:
        """Identifies images by their bytes or pixels."""
        return digest(self.labels, map(content, self._images), self.weights)

    def take(self, rows: np.ndarray) -> "InMemorySplit":
        """Returns a split of these rows; the images keep their names."""
        return InMemorySplit(
            [self._images[row] for row in rows],
            self.labels[rows],
            None if self.groups is None else self.groups[rows],
            [self.name(row) for row in rows],
            None if self.weights is None else self.weights[rows],
        )


def content(image: bytes | np.ndarray) -> bytes:
    """Returns bytes that differ from those of every other image."""
    if isinstance(image, bytes):
        return image
    return f"{image.dtype} {image.shape} ".encode() + image.tobytes()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images, split for training, validation and testing.

    Attributes:
        name: short name for logs and reports.
        description: one line that describes the images.
        class_names: label -> name.
        splits: split name -> images; the training program reads "train", "val" and, if there is
            one, "test".
        synthetic: whether a program drew the images; reports must state this.
        task: "multiclass": every image shows exactly one class. "multilabel": an image shows any
            number of the classes, or none. A multi-label set of a single class is a binary
            classification.

    Raises:
        UserError: `task` is not allowed, there are fewer than two classes (in a multi-label set
            fewer than one), two classes share a name, the labels of a split do not fit the task,
            a label names a class that does not exist, or a weight is not positive and finite.
    """

    name: str
    description: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    synthetic: bool
    task: str = "multiclass"

    def __post_init__(self) -> None:
        if isinstance(self.class_names, str) or not all(
            isinstance(name, str) for name in self.class_names
        ):
            raise UserError(f"class_names must be a tuple of texts; got {self.class_names!r}")
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.task not in TASKS:
            raise UserError(f"a data set's task must be one of {TASKS}; got {self.task!r}")
        multilabel, num_classes = self.task == "multilabel", len(self.class_names)
        if num_classes < (1 if multilabel else 2) or len(set(self.class_names)) < num_classes:
            least = "one" if multilabel else "two"
            raise UserError(
                f"a {self.task} data set needs {least} or more distinct classes; got"
                f" {self.class_names}"
            )
        for name, split in self.splits.items():
            labels, what = np.asarray(split.labels), f"labels of split {name!r}"
            if multilabel:
                check_multilabel(labels, num_classes, what, split.describe)
            else:
                check_multiclass(labels, num_classes, what)
            if split.weights is not None:
                what = f"weights of split {name!r}"
                as_weights(split.weights, len(labels), what, split.describe)

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns split -> class name -> number of images that show it, without decoding any."""
        return {
            split_name: dict(
                zip(
                    self.class_names,
                    class_counts(split.labels, len(self.class_names)).tolist(),
                    strict=True,
                )
            )
            for split_name, split in self.splits.items()
        }
