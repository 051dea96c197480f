"""Labelled images from the caller's own objects, which need not be classes of this package."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.labels import as_labels
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.data.splits.as_configured import as_found, split_as_configured
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


def as_dataset(data: OwnData, config: DataConfig) -> Dataset:
    """Turns the images that a caller passes into a data set.

    It reads every element of an object once for its label.

    Args:
        data: one of three forms. A data set is returned unchanged. Labelled images, or an object
            with `len`, `[]` and `class_names`, are split by the configuration (see
            `split_as_configured`). A dictionary holds such values under the names "train", "val"
            and "test"; val or test may be missing.
        config: the settings of the split.

    Raises:
        UserError: an object lacks `len`, `[]` or `class_names`, is empty, or has an element or a
            label of another form.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Mapping) and (
        "train" not in data or len(data) == 1 or not set(data) <= set(SPLITS)
    ):
        raise UserError(
            f"data has the keys {list(data)}; it must have 'train', and 'val' or 'test' or both"
        )
    return split_as_configured(_labelled(data), config)


def as_labelled(data: OwnData) -> Dataset:
    """Returns the images that a caller passes for evaluation, none of which is split off.

    Args:
        data: as for `as_dataset`, but all images of a single object are the split "test", and no
            name is needed in a dictionary.

    Raises:
        UserError: as `as_dataset`.
    """
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, Mapping):
        return Dataset({"test": _labelled(data)})
    if not data or not set(data) <= set(SPLITS):
        raise UserError(f"data has the keys {list(data)}; it may have {', '.join(SPLITS)}")
    return as_found(_labelled(data))


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
        for part in self.parts:
            if place < len(part):
                return part.read(place)
            place -= len(part)
        raise IndexError(place)


def _labelled(data: Any) -> LabelledImages:
    if not isinstance(data, Mapping):
        return _adapted(data, "data")
    named = {name: data[name] for name in SPLITS if name in data}
    parts = [_adapted(part, f"data[{name!r}]") for name, part in named.items()]
    first = parts[0]
    for name, part in zip(named, parts, strict=True):
        if part.class_names != first.class_names:
            raise UserError(
                f"data[{name!r}] has the class_names {part.class_names}, {next(iter(named))}"
                f" {first.class_names}: give all splits the same"
            )
        if part.task != first.task:
            raise UserError(f"data[{name!r}] has {part.task} labels: give all splits the same kind")
    groups = _of_all([_groups(part, f"data[{name!r}]") for name, part in named.items()], "groups")
    return LabelledImages(
        _Joined(tuple(parts)),
        np.concatenate([part.labels for part in parts]),
        first.class_names,
        names=tuple(part.describe(row) for part in parts for row in range(len(part))),
        groups=groups,
        weights=_of_all([part.weights for part in parts], "weights"),
        splits=np.repeat(list(named), [len(part) for part in parts]),
        name=first.name,
        description=first.description,
        synthetic=any(part.synthetic for part in parts),
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
        groups=_groups(data, where),
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


def _groups(data: Any, where: str) -> np.ndarray | None:
    """Returns the groups as the object has them: patient 1 of one split may be 1.0 in another."""
    groups = getattr(data, "groups", None)
    if groups is None:
        return None
    groups = np.asarray(groups)
    if groups.shape != (len(data),):
        raise UserError(f"{where}.groups has the shape {groups.shape}, not one for each image")
    return groups


def _of_all(parts: list[np.ndarray | None], name: str) -> np.ndarray | None:
    """Joins the arrays of all splits; None if no split has one."""
    given = [part for part in parts if part is not None]
    if given and len(given) < len(parts):
        raise UserError(f"some splits of data have {name} and some have none: give them to all")
    return np.concatenate(given) if given else None
