"""Data sets from the caller's own objects, which need not be classes of this package."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset, Example, content, digest
from medmamba_jax.data.labels import as_labels
from medmamba_jax.data.sources.labelled_images import LabelledImages
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.data.splits.as_configured import split_as_configured
from medmamba_jax.data.weights import as_weights
from medmamba_jax.errors import UserError


class OwnImages(Protocol):
    """The attributes and methods that a caller's object must have.

    It may also have `groups`, the patient of each image (n,), and `weights`, how much each image
    counts in the training loss (n,). Reading threads call `[]` concurrently. With
    `data.num_workers > 0` the object is pickled.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


OwnData = Dataset | OwnImages | Mapping[str, OwnImages]


def as_dataset(data: OwnData, config: DataConfig) -> Dataset:
    """Turns the images that a caller passes into a data set.

    It reads every element once for its label. `digest` of a split reads every image once more.

    Args:
        data: one of three forms. A data set is returned unchanged. An object with `len`, `[]` and
            `class_names` is split by the configuration (see `split_as_configured`). A dictionary
            holds such objects under the names "train", "val" and "test"; val or test may be
            missing.
        config: the settings of the split.

    Raises:
        UserError: an object lacks `len`, `[]` or `class_names`, is empty, or has an element or a
            label of another form.
    """
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, Mapping):
        return split_as_configured(_labelled(data, None, [(data, "")]), config)
    if "train" not in data or len(data) == 1 or not set(data) <= set(SPLITS):
        raise UserError(
            f"data has the keys {list(data)}; it must have 'train', and 'val' or 'test' or both"
        )
    parts = [(data[name], name) for name in SPLITS if name in data]
    assigned = np.concatenate([np.full(_length(part), name) for part, name in parts])
    return split_as_configured(_labelled(data["train"], assigned, parts), config)


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
    parts = dict(data) if isinstance(data, Mapping) else {"test": data}
    if not parts or not set(parts) <= set(SPLITS):
        raise UserError(f"data has the keys {list(parts)}; it may have {', '.join(SPLITS)}")
    assigned = np.concatenate([np.full(_length(part), name) for name, part in parts.items()])
    named = [(part, name) for name, part in parts.items()]
    return _labelled(named[0][0], assigned, named).as_found()


class _OwnSplit:
    """Elements of one or several of a caller's objects."""

    def __init__(
        self,
        places: list[tuple[OwnImages, int, str]],
        labels: np.ndarray,
        groups: np.ndarray | None,
        weights: np.ndarray | None,
    ):
        self._places = places
        self.labels = labels
        self.groups = groups
        self.weights = weights

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        data, row, _ = self._places[index]
        label = self.labels[index]
        return {"image": data[row]["image"], "label": label if label.ndim else int(label)}

    def name(self, index: int) -> str:
        _, row, where = self._places[index]
        return f"{where}[{row}]"

    def describe(self, index: int) -> str:
        return self.name(index)

    def digest(self) -> str:
        """Identifies images by their bytes or pixels."""
        images = (content(self[row]["image"]) for row in range(len(self)))
        return digest(self.labels, images, self.weights)

    def take(self, rows: np.ndarray) -> "_OwnSplit":
        return _OwnSplit(
            [self._places[row] for row in rows],
            self.labels[rows],
            None if self.groups is None else self.groups[rows],
            None if self.weights is None else self.weights[rows],
        )


def _labelled(
    data: Any, assigned: np.ndarray | None, parts: list[tuple[OwnImages, str]]
) -> LabelledImages:
    class_names = _class_names(data)
    places, labels, groups, weights = [], [], [], []
    for part, name in parts:
        if _class_names(part) != class_names:
            raise UserError(
                f"data[{name!r}] has the class_names {_class_names(part)}, train {class_names}:"
                " give all splits the same"
            )
        where = f"data[{name!r}]" if name else "data"
        places += [(part, row, where) for row in range(_length(part))]
        labels += [_label(part, row, where) for row in range(_length(part))]
        groups.append(_groups(part, where))
        weights.append(_weights(part, where))
    try:
        all_labels = as_labels(labels)
    except ValueError as error:
        raise UserError(f"data: {error}") from error
    all_groups = _of_all(groups, "groups")
    return LabelledImages(
        name=type(data).__name__,
        description=f"images of a {type(data).__module__}.{type(data).__qualname__}",
        class_names=class_names,
        images=_OwnSplit(
            places,
            all_labels,
            # As text only here: patient 1 of one split may be 1.0 in another.
            None if all_groups is None else all_groups.astype(str),
            _of_all(weights, "weights"),
        ),
        assigned=assigned,
        task="multilabel" if all_labels.ndim == 2 else "multiclass",
    )


def _class_names(data: Any) -> tuple[str, ...]:
    for attribute in ("__len__", "__getitem__", "class_names"):
        if not hasattr(data, attribute):
            raise UserError(
                f"data is a {type(data).__name__} without {attribute}: pass a Dataset, or an object"
                " with len(), [] and class_names, or such objects in a dictionary of splits"
            )
    return tuple(data.class_names)


def _length(data: Any) -> int:
    if len(data) == 0:
        raise UserError(f"data is a {type(data).__name__} of length 0: pass images")
    return len(data)


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
    groups = getattr(data, "groups", None)
    if groups is None:
        return None
    groups = np.asarray(groups)
    if groups.shape != (len(data),):
        raise UserError(f"{where}.groups has the shape {groups.shape}, not one for each image")
    return groups


def _weights(data: Any, where: str) -> np.ndarray | None:
    weights = getattr(data, "weights", None)
    if weights is None:
        return None
    return as_weights(weights, len(data), f"{where}.weights", lambda row: f"{where}[{row}]")


def _of_all(parts: list[np.ndarray | None], name: str) -> np.ndarray | None:
    """Joins the arrays of all splits; None if no split has one."""
    given = [part for part in parts if part is not None]
    if given and len(given) < len(parts):
        raise UserError(f"some splits of data have {name} and some have none: give them to all")
    return np.concatenate(given) if given else None
