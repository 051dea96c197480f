"""Data sets: splits of labelled images."""

import dataclasses
from collections.abc import Mapping

from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, split for training, validation and testing.

    Attributes:
        splits: split name -> images; the training program reads "train", "val" and, if there is
            one, "test". All have the same classes, in the same order.

    Raises:
        UserError: there is no split, or two splits differ in their task or classes.
    """

    splits: Mapping[str, LabelledImages]

    def __post_init__(self) -> None:
        if not self.splits:
            raise UserError("a data set needs a split of images; got none")
        first = self._first
        for name, images in self.splits.items():
            if (images.task, images.class_names) != (first.task, first.class_names):
                raise UserError(
                    f"the split {name!r} is {images.task} with the class_names"
                    f" {images.class_names}, but {next(iter(self.splits))!r} is {first.task} with"
                    f" {first.class_names}: give all splits the same"
                )

    @property
    def _first(self) -> LabelledImages:
        return next(iter(self.splits.values()))

    @property
    def name(self) -> str:
        """The short name of the images."""
        return self._first.name

    @property
    def description(self) -> str:
        """One line that describes the images and how they were split."""
        return self._first.description

    @property
    def split(self) -> str:
        """How the images were split, in a few words; empty if they came with their splits."""
        images, _, how = self.description.rpartition("; ")
        return how if images else ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Label -> name."""
        return self._first.class_names

    @property
    def task(self) -> str:
        """The task of the images, an entry of `TASKS`."""
        return self._first.task

    @property
    def synthetic(self) -> bool:
        """Whether a program drew images of some split."""
        return any(images.synthetic for images in self.splits.values())

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns split -> class name -> number of images that show it, without decoding any."""
        return {name: images.counts() for name, images in self.splits.items()}
