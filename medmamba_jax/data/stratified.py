"""Splits labelled images by a seed, with each class in proportion and no group in two splits.

Methods import scikit-learn when they need it, because processes that only read images do not.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medmamba_jax.data.labels import shown_classes
from medmamba_jax.data.naming import listed
from medmamba_jax.data.proportions import deal_groups
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.errors import UserError

Rows = dict[str, np.ndarray]

_REMEDY = "add images, leave the class out, or change the fractions"


class Grouping(NamedTuple):
    """What groups are, for messages: the words for one and for several, and one more remedy."""

    one: str
    several: str
    remedy: str = ""


_IMAGES = Grouping("image", "images")  # each on its own
PATIENTS = Grouping("patient (group)", "patients (groups)")
SIMILAR = Grouping(
    "set of similar images",
    "sets of similar images",
    ", or set data.group_similar to identical or off, which lets similar images come into several"
    " splits",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Strata:
    """What decides how images are split. The same values give the same splits.

    Attributes:
        labels: integers (n,); in a multi-label set float (n, K), where 1 means that the image shows
            the class.
        seed: decides which images of a class come into which split.
        groups: the group of each image (n,), or None. No group is in two splits.
        class_names: names of the classes for errors; None means their numbers.
        grouping: what the groups are, for errors.
    """

    labels: np.ndarray
    seed: int = 0
    groups: np.ndarray | None = None
    class_names: Sequence[str] | None = None
    grouping: Grouping = PATIENTS

    def take(self, rows: np.ndarray) -> "Strata":
        """Returns the same for these images."""
        groups = None if self.groups is None else np.asarray(self.groups)[rows]
        return dataclasses.replace(self, labels=np.asarray(self.labels)[rows], groups=groups)

    def split_off(self, count: int, name: str, left: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Splits some images off, stratified by class.

        Args:
            count: the number of images to split off. With groups, whole groups are split off, and
                the number is as near to `count` as they allow.
            name: the name of the new split in an error, which speaks of `data.NAME_fraction`.
            left: in an error, what left these images, if they are not all.

        Returns:
            Two ascending index arrays: the images that stay, and the images of the new split.

        Raises:
            UserError: a class is not in both parts.
        """
        if self.groups is None and self.labels.ndim == 1:
            kept, split = self._split_images_off(count, name, left)
        else:
            fraction = count / len(self.labels)
            kept, split = self._deal([1 - fraction, fraction])
        self._require_every_class({"train": kept, name: split})
        return kept, split

    def by_fractions(self, *, val: float, test: float) -> Rows:
        """Splits images into train, val and test, stratified by class.

        The sizes are the fractions of n, rounded to whole images. With groups, they are as near to
        the fractions as whole groups allow.

        Args:
            val: the fraction of all images for validation.
            test: the fraction of all images for testing.

        Returns:
            "train", "val", "test" -> ascending indices.

        Raises:
            UserError: a class is not in every split.
        """
        if self.groups is None and self.labels.ndim == 1:
            count = len(self.labels)
            rest, in_test = self._split_images_off(round(test * count), "test")
            in_train, in_val = self.take(rest)._split_images_off(
                round(val * count), "val", f"the test split leaves of {count}"
            )
            rows = {"train": rest[in_train], "val": rest[in_val], "test": in_test}
        else:
            rows = dict(zip(SPLITS, self._deal([1 - val - test, val, test]), strict=True))
        self._require_every_class(rows)
        return rows

    def by_fold(self, fold: int, folds: int, *, val: float) -> Rows:
        """Splits images for one round of a cross-validation, stratified by class.

        The folds do not depend on `fold`, so every image is in the test set of exactly one round.

        Args:
            fold: the index of the fold that is the test set, counted from 0.
            folds: the number of folds.
            val: the fraction of all images for validation. They are split off the other folds.

        Returns:
            "train", "val", "test" -> ascending indices.

        Raises:
            UserError: a class is not in every split, or has fewer images or groups than folds.
        """
        if few := self.small_classes(folds):
            raise UserError(
                f"{listed(few)}, too few for {folds} folds: ask for fewer, or"
                f" {_REMEDY.partition(', or')[0]}{self._kind.remedy}"
            )
        count = len(self.labels)
        if self.labels.ndim == 2:  # scikit-learn stratifies only by one class for each image
            parts = self._deal([1 / folds] * folds)
        else:
            from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

            kind = StratifiedKFold if self.groups is None else StratifiedGroupKFold
            splitter = kind(folds, shuffle=True, random_state=self.seed)
            splits = splitter.split(np.zeros(count), self.labels, self.groups)
            parts = [test for _, test in splits]
        test = np.sort(parts[fold])
        rest = np.setdiff1d(np.arange(count), test)
        in_train, in_val = self.take(rest).split_off(
            round(val * count), "val", f"the test fold leaves of {count}"
        )
        rows = {"train": rest[in_train], "val": rest[in_val], "test": test}
        self._require_every_class(rows)
        return rows

    def small_classes(self, parts: int) -> list[str]:
        """Names each class that fewer images, or groups, show than there are splits or folds.

        Returns:
            Texts such as "class 'cyst' has 2 images". Classes that no image shows are not named.
        """
        group_of = self._group_numbers()
        found = [len(np.unique(group_of[shown])) for shown in shown_classes(self.labels).T]
        names = self.class_names
        return [
            f"class {label if names is None else repr(names[label])} has {self._counted(count)}"
            for label, count in enumerate(found)
            if 0 < count < parts
        ]

    def _counted(self, count: int) -> str:
        return f"{count} {self._kind.one if count == 1 else self._kind.several}"

    @property
    def _kind(self) -> Grouping:
        return _IMAGES if self.groups is None else self.grouping

    def _split_images_off(
        self, count: int, name: str, left: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Splits images off without regard to groups, by scikit-learn."""
        images, class_sizes = len(self.labels), np.unique(self.labels, return_counts=True)[1]
        if class_sizes.min() < 2 or not len(class_sizes) <= count <= images - len(class_sizes):
            few = self.small_classes(2)
            raise UserError(
                f"cannot split {self._counted(count)} off {images} for {name}"
                f"{f' (the {images} that {left})' if left else ''}: every class (sizes"
                f" {class_sizes.tolist()}) needs an image in both parts"
                f"{', but ' + listed(few) if few else ''}; add images, or change"
                f" data.{name}_fraction, unless a public set is split in its own proportions"
            )
        from sklearn.model_selection import train_test_split

        kept, split = train_test_split(
            np.arange(images), test_size=count, stratify=self.labels, random_state=self.seed
        )
        return np.sort(kept), np.sort(split)

    def _deal(self, fractions: Sequence[float]) -> list[np.ndarray]:
        """Divides the images into one part for each fraction; returns their ascending indices."""
        shown, group_of = shown_classes(self.labels), self._group_numbers()
        counts = np.zeros((group_of.max() + 1, shown.shape[1]), np.int64)
        np.add.at(counts, group_of, shown)
        rng = np.random.default_rng(self.seed)
        parts = deal_groups(counts, np.bincount(group_of), np.asarray(fractions), rng)
        return [np.flatnonzero(parts[group_of] == part) for part in range(len(fractions))]

    def _group_numbers(self) -> np.ndarray:
        if self.groups is None:
            return np.arange(len(self.labels))
        return np.unique(self.groups, return_inverse=True)[1]

    def _require_every_class(self, rows: Mapping[str, np.ndarray]) -> None:
        shown = shown_classes(self.labels)
        for name, part in rows.items():
            lacking = shown.any(0) & ~shown[part].any(0)
            if lacking.any():
                only = np.where(lacking, shown, False).astype(np.float32)
                few = dataclasses.replace(self, labels=only).small_classes(len(shown) + 1)
                raise UserError(
                    f"{listed(few)}, which leaves none for {name}: {_REMEDY}{self._kind.remedy}"
                )
