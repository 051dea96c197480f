"""Labelled images from the caller's own objects, which need not be classes of this package."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.labels import as_labels
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.data.weights import as_weights
from medmamba_jax.errors import UserError


class OwnImages(Protocol):
    """The attributes and methods that a caller's object must have.

    `[]` returns a dictionary with "image", the bytes of an image file or an array (h, w) or
    (h, w, c), and "label", as in `LabelledImages`. The object may also have `groups`, the patient
    of each image (n,), and `weights`, how much each image counts in the training loss (n,). Reading
    threads call `[]` concurrently. With `data.num_workers > 0` the object is pickled.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


OwnData = Dataset | LabelledImages | OwnImages | Mapping[str, LabelledImages | OwnImages]


def labelled(data: OwnData) -> LabelledImages:
    """Turns the images that a caller passes into one value.

    It reads every element of an object once for its label.

    Args:
        data: a data set; labelled images; an object with `len`, `[]` and `class_names`; or a
            dictionary of these under the names "train", "val" and "test". `splits` of the result
            is that of a data set or of a dictionary.

    Raises:
        UserError: an object lacks `len`, `[]` or `class_names`, is empty, or has an element or a
            label of another form; or two splits have different classes.
    """
    if isinstance(data, Dataset):  # weights may be those of its training images alone
        return _joined(data.splits)
    if not isinstance(data, Mapping):
        return _adapted(data, "data")
    if not data or not set(data) <= set(SPLITS):
        raise UserError(f"data has the keys {list(data)}; it may have {', '.join(SPLITS)}")
    named = {name: data[name] for name in SPLITS if name in data}
    parts = {name: _adapted(part, f"data[{name!r}]") for name, part in named.items()}
    _of_all([part.weights for part in parts.values()], "weights")  # raises if some have none
    return _joined(Dataset(parts).splits)  # `Dataset` requires the same classes in all


@dataclasses.dataclass(frozen=True)
class _Elements:
    """The images of a caller's object."""

    data: OwnImages

    def __getitem__(self, place: int) -> bytes | np.ndarray:
        return self.data[place]["image"]


@dataclasses.dataclass(frozen=True)
class _Joined:
    """The images of several parts, one part after the other."""

    parts: tuple[LabelledImages, ...]

    def __getitem__(self, place: int) -> bytes | np.ndarray:
        part, row = self._find(place)
        return part.read(row)

    def identity(self, place: int, image: bytes | np.ndarray | None = None) -> bytes:
        part, row = self._find(place)
        return part.identity(row, image)

    def file(self, place: int, image: bytes | np.ndarray | None = None) -> bytes | np.ndarray:
        part, row = self._find(place)
        return part.file(row, image)

    def _find(self, place: int) -> tuple[LabelledImages, int]:
        for part in self.parts:
            if place < len(part):
                return part, place
            place -= len(part)
        raise IndexError(place)


def _joined(named: Mapping[str, LabelledImages]) -> LabelledImages:
    parts = tuple(named.values())
    first = parts[0]
    alike = all((part.root, part.origin) == (first.root, first.origin) for part in parts)
    return LabelledImages(
        _Joined(parts),
        np.concatenate([part.labels for part in parts]),
        first.class_names,
        names=tuple(
            part.names[row] if alike else part.describe(row)
            for part in parts
            for row in range(len(part))
        ),
        groups=_of_all([part.groups for part in parts], "groups"),
        weights=_joined_weights(parts),
        splits=np.repeat(list(named), [len(part) for part in parts]),
        files=_of_all([part.files for part in parts], "files"),
        name=first.name,
        description=first.description,
        synthetic=any(part.synthetic for part in parts),
        root=first.root if alike else None,
        origin=first.origin if alike else "",
        places=np.arange(sum(map(len, parts))),
    )


def _adapted(data: Any, where: str) -> LabelledImages:
    """Returns one object as labelled images; `where` names it in messages."""
    if isinstance(data, LabelledImages):
        return data
    for attribute in ("__len__", "__getitem__", "class_names"):
        if not hasattr(data, attribute):
            raise UserError(
                f"data is a {type(data).__name__} without {attribute}: pass a Dataset, or an object"
                " with len(), [] and class_names, or such objects in a dictionary of splits"
            )
    count = len(data)
    if count == 0:
        raise UserError(f"data is a {type(data).__name__} of length 0: pass images")
    try:
        labels = as_labels([_label(data, row, where) for row in range(count)])
    except ValueError as error:
        raise UserError(f"data: {error}") from error
    weights = getattr(data, "weights", None)
    if weights is not None:
        weights = as_weights(weights, count, f"{where}.weights", lambda row: f"{where}[{row}]")
    return LabelledImages(
        _Elements(data),
        labels,
        tuple(data.class_names),
        names=tuple(f"{where}[{row}]" for row in range(count)),
        groups=getattr(data, "groups", None),
        weights=weights,
        name=type(data).__name__,
        description=f"images of a {type(data).__module__}.{type(data).__qualname__}",
        places=np.arange(count),
    )


def _label(data: Any, row: int, where: str) -> Any:
    example = data[row]
    if not isinstance(example, Mapping) or not {"image", "label"} <= example.keys():
        raise UserError(
            f"{where}[{row}] is no dictionary with image and label, but a {type(example).__name__}:"
            " return {'image': bytes or array, 'label': int}"
        )
    if not isinstance(example["image"], (bytes, np.ndarray)):
        raise UserError(
            f"{where}[{row}]: the image is a {type(example['image']).__name__}; return the bytes of"
            " an image file or a NumPy array"
        )
    return example["label"]


def _joined_weights(parts: Sequence[LabelledImages]) -> np.ndarray | None:
    """Joins the weights of all splits; an image of a split without weights has weight 1."""
    if all(part.weights is None for part in parts):
        return None
    given = [np.ones(len(p), np.float32) if p.weights is None else p.weights for p in parts]
    return np.concatenate(given)


def _of_all(parts: list[np.ndarray | None], name: str) -> np.ndarray | None:
    """Joins the arrays of all splits; None if no split has one."""
    given = [part for part in parts if part is not None]
    if given and len(given) < len(parts):
        raise UserError(f"some splits of data have {name} and some have none: give them to all")
    return np.concatenate(given) if given else None
