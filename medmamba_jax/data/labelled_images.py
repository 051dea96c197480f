"""Labelled images: the value that sources return, of which splits and subsets are rows."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medmamba_jax.data.labels import as_labels, check_labels, shown_classes
from medmamba_jax.data.texts import MISSING, one_spelling, printable, shown_name
from medmamba_jax.data.weights import as_weights
from medmamba_jax.errors import UserError

TASKS = ("multiclass", "multilabel")

_BETWEEN_CLASSES = "|"
_HALF = 32  # digits of a hash


class Images(Protocol):
    """Images by their place, such as a list or an array. Threads read them concurrently.

    A class whose images are parts of something else may also have the methods `identity(place,
    image)` and `file(place, image)`, see `LabelledImages`. `image` is the image, or None if it has
    not been read.
    """

    def __getitem__(self, place: int, /) -> bytes | np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images, their labels, and all other facts about them that a source knows.

    With worker processes, pickle must be able to copy the images. Names of classes, images and
    groups become one line that is safe to show, see `shown_name`.

    Attributes:
        images: the bytes of image files, or arrays (h, w) or (h, w, c), by their place.
        labels: integers (n,), indices into `class_names`. In a multi-label set numbers (n, K): 1
            where an image shows the class, 0 where it does not, NaN or -1 where that is not known.
            These become float32 with NaN.
        class_names: label -> name. If there are none, the numbers are the names.
        names: the name of each image (n,): its path below `root`, or another text. If there are
            none, "image 0" and so on.
        groups: the group of each image, most often its patient, as text (n,), in the spelling of
            `one_spelling`. All images of a group belong in one split. None means that the groups
            are not known.
        weights: how much each image counts in the training loss, float32 (n,). None means that all
            images count alike.
        splits: the split of each image, "train", "val" or "test" (n,), if the source gives them.
            Train and at least one of the others have images.
        files: the file of each image (n,), if a file holds several. All images of a file stay in
            one split.
        name: a short name for logs and reports.
        description: one line that describes the images.
        synthetic: whether a program drew the images; reports must state this.
        root: the folder of the files, if they are files.
        origin: what else holds the images, for messages.
        places: the place of each image (n,). None means that image i is `images[i]`.

    Raises:
        UserError: the lengths differ, there is no class, two classes share a name, a label is not
            of an allowed kind or has no class, the group of an image is not known, or a weight is
            not positive and finite.
    """

    images: Images
    labels: np.ndarray
    class_names: tuple[str, ...] = ()
    _: dataclasses.KW_ONLY
    names: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    weights: np.ndarray | None = None
    splits: np.ndarray | None = None
    files: np.ndarray | None = None
    name: str = "the images"
    description: str = ""
    synthetic: bool = False
    root: Path | None = None
    origin: str = ""
    places: np.ndarray = None  # type: ignore[assignment]  # `__post_init__` makes it

    def __post_init__(self) -> None:
        labels = as_labels(self.labels)
        count = len(labels)
        images: Any = self.images  # it has a length if there are no places
        if self.places is None and len(images) != count:
            raise UserError(f"got {len(images)} images but {count} labels")
        if len(self.names) not in (0, count):
            raise UserError(f"got {count} images but {len(self.names)} names")
        groups = None if self.groups is None else np.asarray(self.groups).astype(str)
        if groups is not None and groups.shape != (count,):
            raise UserError(f"got {count} images but groups of shape {groups.shape}")
        if isinstance(self.class_names, str) or not all(
            isinstance(name, str) for name in self.class_names
        ):
            raise UserError(f"class_names must be a tuple of texts; got {self.class_names!r}")
        values: dict[str, Any] = {
            "labels": labels,
            "class_names": tuple(map(shown_name, self.class_names)) or _numbers(labels),
            "names": tuple(map(shown_name, self.names))
            or tuple(f"image {row}" for row in range(count)),
            "groups": None if groups is None else np.array(_spelled(groups.tolist()), np.str_),
            "name": shown_name(self.name),
            "description": shown_name(self.description),
            "splits": None if self.splits is None else np.asarray(self.splits),
            "places": np.arange(count) if self.places is None else self.places,
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)
        self._check()
        if self.weights is not None:
            weights = as_weights(self.weights, count, f"weights of {self.name}", self.describe)
            object.__setattr__(self, "weights", weights)

    def _check(self) -> None:
        if len(set(self.class_names)) < max(1, len(self.class_names)):
            raise UserError(
                f"labelled images need one or more distinct classes; got {self.class_names}"
            )
        check_labels(self.labels, len(self.class_names), f"labels of {self.name}")
        if self.groups is not None:
            for row in np.flatnonzero(np.isin(self.groups, tuple(MISSING)))[:1]:
                raise UserError(
                    f"{self.describe(row)} has the patient (group) {str(self.groups[row])!r}, which"
                    " names nobody: give each image one, of its own where none is known"
                )

    @property
    def task(self) -> str:
        """ "multiclass": every image shows exactly one class. "multilabel": an image shows any
        number of the classes, or none. A multi-label set of a single class is a binary
        classification.
        """
        return "multilabel" if self.labels.ndim == 2 else "multiclass"

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> bytes | np.ndarray:
        """Returns the bytes of an image file, or an array (h, w) or (h, w, c)."""
        return self.images[int(self.places[row])]

    def take(self, rows: np.ndarray) -> "LabelledImages":
        """Returns the images of these rows, in this order."""
        taken: dict[str, Any] = {
            field: None if (values := getattr(self, field)) is None else values[rows]
            for field in ("labels", "groups", "weights", "splits", "files", "places")
        }
        taken["names"] = tuple(self.names[row] for row in rows)
        return dataclasses.replace(self, **taken)

    def describe(self, row: int) -> str:
        """Names an image in a message, so that the user finds it."""
        if self.root is not None:
            return str(self.root / self.names[row])
        return self.names[row] + (f" of {self.origin}" if self.origin else "")

    def label_name(self, row: int) -> str:
        """Names the class of an image; in a multi-label set all its classes, with "|" between."""
        label = self.labels[row]
        if label.ndim:
            return _BETWEEN_CLASSES.join(self.class_names[k] for k in np.flatnonzero(label == 1))
        return self.class_names[label]

    def counts(self) -> dict[str, int]:
        """Returns class name -> number of images that show it."""
        counts = shown_classes(self.labels, len(self.class_names)).sum(0)
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    def identity(self, row: int, image: bytes | np.ndarray | None = None) -> bytes:
        """Returns the content hash of an image, or of the file and frame that it is made of.

        Args:
            row: the row of the image.
            image: the image, if it has been read already.
        """
        known = getattr(self.images, "identity", None)
        if known is not None:
            return known(int(self.places[row]), image)
        return content_hash(self.read(row) if image is None else image)

    def file(self, row: int, image: bytes | np.ndarray | None = None) -> bytes | np.ndarray:
        """Returns the bytes of the file that holds an image, such as a frame; see `identity`.

        If the image is in no file, it returns the image.
        """
        known = getattr(self.images, "file", None)
        if known is not None:
            return known(int(self.places[row]), image)
        return self.read(row) if image is None else image

    @functools.cached_property
    def contents(self) -> tuple[str, ...]:
        """Half of the content hash of each image's file, as text (n,).

        Files whose content hash is not known yet are read. Tables show only half of a hash: from
        the whole hashes of all files, anybody could make the key of `header_patients`, which hides
        the patients.
        """
        if self.files is None:
            return tuple(self.identity(row).hex()[:_HALF] for row in range(len(self)))
        rows = {file: row for row, file in enumerate(self.files.tolist())}
        of = {file: content_hash(self.file(row)).hex()[:_HALF] for file, row in rows.items()}
        return tuple(of[file] for file in self.files.tolist())

    def digest(self) -> str:
        """Returns a hash of the content of the images, the labels and the weights in their order.

        It reads the images whose content hash is not known yet.
        """
        labels = self.labels
        if labels.ndim == 2:  # another NaN or a negative zero gives the same bytes
            labels = np.where(np.isnan(labels), 2, labels)
        total = hashlib.sha256(f"{labels.shape} ".encode() + labels.astype("<i8").tobytes())
        for row in range(len(self)):
            total.update(self.identity(row))
        if self.weights is not None:
            total.update(b"weights" + self.weights.astype("<f4").tobytes())
        return total.hexdigest()


def content_hash(image: bytes | np.ndarray) -> bytes:
    """Returns the SHA-256 of the bytes of a file, or of an array's dtype, shape and values."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    total = hashlib.sha256(f"{image.dtype} {image.shape} ".encode())
    total.update(np.ascontiguousarray(image).data)
    return total.digest()


def _spelled(groups: list[str]) -> list[str]:
    return one_spelling(map(shown_name, groups))


def _numbers(labels: np.ndarray) -> tuple[str, ...]:
    count = labels.shape[1] if labels.ndim == 2 else max(2, int(labels.max(initial=0)) + 1)
    return tuple(map(str, range(count)))


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files below a folder; reading one returns its bytes.

    Raises:
        UserError: the file is a link, and nothing is where it leads.
    """

    root: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> bytes:
        path = self.root / self.names[place]
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            if path.is_symlink():
                raise UserError(
                    f"the link leads to {path.readlink()}, which is not there: get that file"
                ) from error
            raise


def labelled_files(
    root: Path, files: Iterable[str], labels: np.ndarray, class_names: tuple[str, ...], **facts: Any
) -> LabelledImages:
    """Returns the image files at these paths below a folder, with "/" between folders.

    An image's name is its path as `printable` text.
    """
    files = tuple(files)
    names = tuple(map(printable, files))
    return LabelledImages(Files(root, files), labels, class_names, names=names, root=root, **facts)
