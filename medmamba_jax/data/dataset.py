"""What a data set is: named classes and splits of labelled images."""

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
    label: index into `Dataset.class_names`; of a multi-label set float32 (K,), see `Split`.
    """

    image: bytes | np.ndarray
    label: int | np.ndarray


class Split(Protocol):
    """Random access to labelled images.

    `labels` is known without decoding any image, and `split[i]["label"] == split.labels[i]`:
    integers (n,); of a multi-label set float32 (n, K), 1 where image i shows class k, 0 where it
    does not, NaN where that is not known. `groups` names what image i belongs to, most often its
    patient, as strings (n,), or is None: images of one group belong into one split. `weights` says
    how much image i counts in the training loss, float32 (n,), positive and finite, or is None:
    all count alike. With `num_workers > 0` the split travels to worker processes, so it has to be
    picklable. Reading threads call `split[i]` concurrently.
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
        """Names image `index` for a message: its file, or where else the user finds it."""
        ...

    def digest(self) -> str:
        """Returns a hash of the images, labels, weights and order; see `digest`."""
        ...


def digest(
    labels: np.ndarray, identities: Iterable[bytes], weights: np.ndarray | None = None
) -> str:
    """Returns the SHA-256 of labels, (n,) or (n, K), and what identifies their images, in order.

    Weights, float32 (n,), are covered where there are any.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2:  # bytes that no other NaN, zero or dtype changes
        total = hashlib.sha256(f"{labels.shape} ".encode())
        rows = map(bytes, np.where(np.isnan(labels), 2, labels).astype(np.uint8))
    else:
        total = hashlib.sha256()
        rows = (label.to_bytes(8, "little") for label in labels.tolist())
    for label, identity in zip(rows, identities, strict=True):
        # A digest each, so that no two lists of images run together to the same bytes.
        total.update(label + hashlib.sha256(identity).digest())
    if weights is not None:
        total.update(b"weights" + weights.astype("<f4").tobytes())
    return total.hexdigest()


class InMemorySplit:
    """A split whose images are already in memory.

    Args:
        images: n images, each as in `Example`; an array (n, h, w[, c]) will do.
        labels: integers (n,); of a multi-label set numbers (n, K): 1, 0, and NaN or -1 for what
            is not known.
        groups: what each image belongs to, (n,); see `Split`.
        names: what messages and tables call each image, (n,); "image 0" and so on if None.
        weights: how much each image counts in the training loss, (n,); see `Split`.

    Raises:
        UserError: the lengths differ, the labels are of neither kind, or a weight is not
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
        """Returns the images of these rows; they keep their names."""
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
        description: one line saying what the images are.
        class_names: label -> name.
        splits: split name -> images; the training program reads "train", "val" and, if there is
            one, "test".
        synthetic: whether the images are drawn by a program; reports must say so.
        task: "multiclass", every image shows one class; or "multilabel", an image shows any of
            the classes, or none. A single class makes it a binary classification.

    Raises:
        UserError: the task is another, there are fewer than two classes (fewer than one of
            a multi-label set), two share a name, or a split's labels are not the task's or name
            a class that does not exist, or its weights are not positive and finite.
    """

    name: str
    description: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    synthetic: bool
    task: str = "multiclass"

    def __post_init__(self):
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
