"""Labelled images from a source, before they are split."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from medmamba_jax.data.dataset import Dataset, Split
from medmamba_jax.data.labels import check_multiclass, check_multilabel
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.errors import UserError

_UNKNOWN_GROUPS = ("", "nan", "None", "<NA>")  # missing values of Python, NumPy and pandas as text


class Images(Split, Protocol):
    """A split whose images have names, and whose rows can be selected."""

    def name(self, index: int) -> str:
        """Returns a unique name: the image's path below a folder, or its row."""
        ...

    def take(self, rows: np.ndarray) -> "Images":
        """Returns the images of these rows, in this order."""
        ...


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Labelled images, and the splits that the source gives.

    Attributes:
        name, description, class_names, synthetic, task: as in `Dataset`.
        images: the images of all splits.
        assigned: the split of each image, "train", "val" or "test" (n,). Train and at least one of
            the others have images. None if the images still have to be split.

    Raises:
        UserError: a label does not fit the task or the classes, or there are groups but the group
            of an image is not known.
    """

    name: str
    description: str
    class_names: tuple[str, ...]
    images: Images
    assigned: np.ndarray | None = None
    synthetic: bool = False
    task: str = "multiclass"

    def __post_init__(self) -> None:
        labels, what = self.images.labels, f"labels of {self.name}"
        if self.task == "multilabel":
            check_multilabel(labels, len(self.class_names), what, self.images.describe)
        else:
            check_multiclass(labels, len(self.class_names), what)
        if self.images.groups is not None:
            for row in np.flatnonzero(np.isin(self.images.groups, _UNKNOWN_GROUPS))[:1]:
                raise UserError(
                    f"{self.images.describe(row)} has the patient (group)"
                    f" {str(self.images.groups[row])!r}, which names nobody: give each image one,"
                    " of its own where none is known"
                )

    def dataset(self, rows: Mapping[str, np.ndarray], how: str = "") -> Dataset:
        """Returns a data set with these rows as splits; `how` describes the split in words."""
        return Dataset(
            name=self.name,
            description=f"{self.description}; {how}" if how else self.description,
            class_names=self.class_names,
            splits={name: self.images.take(part) for name, part in rows.items()},
            synthetic=self.synthetic,
            task=self.task,
        )

    def as_found(self) -> Dataset:
        """Returns the splits of the source; without any, all images as one split "all"."""
        if self.assigned is None:
            return self.dataset({"all": np.arange(len(self.images))})
        names = [name for name in SPLITS if (self.assigned == name).any()]
        return self.dataset({name: np.flatnonzero(self.assigned == name) for name in names})
