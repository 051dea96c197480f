"""Splits labelled images by a seed, with each class in proportion and no group in two splits.

Functions import scikit-learn when they need it, because processes that only read images do not.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from medmamba_jax.data.labels import shown_classes
from medmamba_jax.data.naming import listed
from medmamba_jax.data.proportions import deal_groups
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.errors import UserError

_REMEDY = "add images, leave the class out, or change the fractions"


def split_off(
    labels: np.ndarray,
    count: int,
    *,
    seed: int,
    name: str,
    groups: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Splits some images off, stratified by class.

    Args:
        labels: integers (n,); in a multi-label set float (n, K), where 1 means that the image shows
            the class.
        count: the number of images to split off. With groups, whole groups are split off, and the
            number is as near to `count` as they allow.
        seed: the same seed, labels and groups give the same split.
        name: the name of the new split in an error.
        groups: the group of each image (n,), or None. No group is in both parts.
        class_names: names of the classes for errors; None means their numbers.

    Returns:
        Two ascending index arrays: the images that stay, and the images of the new split.

    Raises:
        UserError: a class is not in both parts.
    """
    labels = np.asarray(labels)
    if groups is None and labels.ndim == 1:
        kept, split = _split_images_off(labels, count, seed, name, class_names)
    else:
        fraction = count / len(labels)
        kept, split = _deal(labels, groups, [1 - fraction, fraction], seed)
    _require_every_class({"train": kept, name: split}, labels, groups, class_names)
    return kept, split


def stratified_split(
    labels: np.ndarray,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Splits images into train, val and test, stratified by class.

    The sizes are the fractions of n, rounded to whole images. With groups, they are as near to the
    fractions as whole groups allow.

    Args:
        labels: as in `split_off`.
        val_fraction: the fraction of all images for validation.
        test_fraction: the fraction of all images for testing.
        seed: the same seed, labels and groups give the same splits.
        groups: the group of each image (n,), or None. No group is in two splits.
        class_names: as in `split_off`.

    Returns:
        "train", "val", "test" -> ascending indices.

    Raises:
        UserError: a class is not in every split.
    """
    labels = np.asarray(labels)
    if groups is None and labels.ndim == 1:
        count = len(labels)
        rest, test = _split_images_off(
            labels, round(test_fraction * count), seed, "test", class_names
        )
        train, val = _split_images_off(
            labels[rest], round(val_fraction * count), seed, "val", class_names
        )
        rows = {"train": rest[train], "val": rest[val], "test": test}
    else:
        fractions = [1 - val_fraction - test_fraction, val_fraction, test_fraction]
        rows = dict(zip(SPLITS, _deal(labels, groups, fractions, seed), strict=True))
    _require_every_class(rows, labels, groups, class_names)
    return rows


def fold_split(
    labels: np.ndarray,
    *,
    fold: int,
    folds: int,
    val_fraction: float,
    seed: int,
    groups: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Splits images for one round of a cross-validation, stratified by class.

    The folds do not depend on `fold`, so every image is in the test set of exactly one round.

    Args:
        labels: as in `split_off`.
        fold: the index of the fold that is the test set, counted from 0.
        folds: the number of folds.
        val_fraction: the fraction of all images for validation. They are split off the other folds.
        seed: the same seed, labels and groups give the same folds.
        groups: the group of each image (n,), or None. No group is in two splits.
        class_names: as in `split_off`.

    Returns:
        "train", "val", "test" -> ascending indices.

    Raises:
        UserError: a class is not in every split, or fewer images or groups than folds show it.
    """
    labels = np.asarray(labels)
    if few := small_classes(labels, groups, class_names, folds):
        raise UserError(
            f"{listed(few)}, too few for {folds} folds: ask for fewer, or"
            f" {_REMEDY.partition(', or')[0]}"
        )
    if labels.ndim == 2:  # scikit-learn stratifies only by one class for each image
        parts = _deal(labels, groups, [1 / folds] * folds, seed)
    else:
        from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        splitter = kind(folds, shuffle=True, random_state=seed)
        parts = [test for _, test in splitter.split(np.zeros(len(labels)), labels, groups)]
    test = np.sort(parts[fold])
    rest = np.setdiff1d(np.arange(len(labels)), test)
    train, val = split_off(
        labels[rest],
        round(val_fraction * len(labels)),
        seed=seed,
        name="val",
        groups=None if groups is None else np.asarray(groups)[rest],
        class_names=class_names,
    )
    rows = {"train": rest[train], "val": rest[val], "test": test}
    _require_every_class(rows, labels, groups, class_names)
    return rows


def small_classes(
    labels: np.ndarray,
    groups: np.ndarray | None,
    class_names: Sequence[str] | None,
    parts: int,
) -> list[str]:
    """Names each class that fewer images, or groups, show than there are splits or folds.

    Args:
        labels, groups, class_names: as in `split_off`.
        parts: the number of splits or folds.

    Returns:
        Texts such as "class 'cyst' has 2 images". Classes that no image shows are not named.
    """
    labels = np.asarray(labels)
    group_of = _group_numbers(labels, groups)
    found = [len(np.unique(group_of[shown])) for shown in shown_classes(labels).T]
    return [
        f"class {label if class_names is None else repr(class_names[label])} has {count}"
        f" {'images' if groups is None else 'patients (groups)'}"
        for label, count in enumerate(found)
        if 0 < count < parts
    ]


def _split_images_off(
    labels: np.ndarray, count: int, seed: int, name: str, class_names: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    class_sizes = np.unique(labels, return_counts=True)[1]
    if class_sizes.min() < 2 or not len(class_sizes) <= count <= len(labels) - len(class_sizes):
        few = small_classes(labels, None, class_names, 2)
        raise UserError(
            f"cannot split {count} images off {len(labels)} for {name}: every class (sizes"
            f" {class_sizes.tolist()}) needs an image in both parts"
            f"{', but ' + listed(few) if few else ''}; add images or change the fraction"
        )
    from sklearn.model_selection import train_test_split

    kept, split = train_test_split(
        np.arange(len(labels)), test_size=count, stratify=labels, random_state=seed
    )
    return np.sort(kept), np.sort(split)


def _deal(
    labels: np.ndarray, groups: np.ndarray | None, fractions: Sequence[float], seed: int
) -> list[np.ndarray]:
    """Divides the images into one part for each fraction; returns their ascending indices."""
    shown = shown_classes(labels)
    group_of = _group_numbers(labels, groups)
    counts = np.zeros((group_of.max() + 1, shown.shape[1]), np.int64)
    np.add.at(counts, group_of, shown)
    parts = deal_groups(
        counts, np.bincount(group_of), np.asarray(fractions), np.random.default_rng(seed)
    )
    return [np.flatnonzero(parts[group_of] == part) for part in range(len(fractions))]


def _group_numbers(labels: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    if groups is None:
        return np.arange(len(labels))
    return np.unique(groups, return_inverse=True)[1]


def _require_every_class(
    rows: Mapping[str, np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray | None,
    class_names: Sequence[str] | None,
) -> None:
    shown = shown_classes(labels)
    for name, part in rows.items():
        lacking = shown.any(0) & ~shown[part].any(0)
        if lacking.any():
            only = np.where(lacking, shown, False).astype(np.float32)
            few = small_classes(only, groups, class_names, len(labels) + 1)
            raise UserError(f"{listed(few)}, which leaves none for {name}: {_REMEDY}")
