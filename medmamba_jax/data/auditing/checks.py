"""Checks of the images before training. They find errors that make a medical result wrong."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from absl import logging

from medmamba_jax.data.auditing.duplicates import Duplicates
from medmamba_jax.data.auditing.fingerprints import Facts
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.naming import listed
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.errors import UserError

_ALLOW = "or set data.allow_overlap=True to go on with a warning"
_CHECKED = "damaged images, for patients or images in two splits, and for equal images"


@dataclasses.dataclass(frozen=True)
class SameImages:
    """Images with the same pixels.

    Attributes:
        text: the names and splits of the first, and the classes if these differ.
        copies: the number of images without the first.
        splits: the names of their splits.
        contradict: whether their classes differ.
    """

    text: str
    copies: int
    splits: frozenset[str]
    contradict: bool


def audit(
    dataset: Dataset,
    images: LabelledImages,
    facts: Facts | None,
    duplicates: Duplicates | None,
    config: DataConfig,
    *,
    made: Collection[str],
    say: Callable[[str], None],
) -> None:
    """Checks that splits are disjoint and that every image can be read.

    It reads no image: the first pass has found the facts. If `config.audit` is False, the audit
    only checks the classes of the splits, and reports in a line what it did not check.

    The audit raises an error for an empty split, an image that cannot be decoded, and a training
    set of one class. It also raises an error for a group in two splits, and for images in two
    splits with the same pixels; with `config.allow_overlap` it only warns of these two. Images with
    the same pixels and different labels are a warning that lists all of them, or an error if
    `config.allow_contradictions` is False.

    It warns of nearly equal images in two splits, equal images in one split, a class without images
    in a split, a missing test split, and a multi-label set whose images show one class each.

    Args:
        dataset: the images by split.
        images: all images with their splits, "" for those in no split.
        facts: the facts of `images`; None if the first pass did not look for them.
        duplicates: the equal images among them.
        config: which checks to make, and what is allowed.
        made: the names of the splits that the program made.
        say: function that prints or logs a line that is neither an error nor a warning.

    Raises:
        UserError: one of the errors above; the message names the files and groups.
    """
    _check_splits(dataset)
    if not config.audit:
        say(f"data.audit is False: nothing was checked for {_CHECKED}")
        return
    _check_groups(dataset, config.allow_overlap)
    if facts is None or duplicates is None:
        return
    used = np.flatnonzero(images.splits != "")
    problems = unreadable_images(images, facts, used)
    if problems:
        droppable = images.root is not None and len(problems) < len(used)
        raise UserError(
            f"{len(problems)} of {len(used)} images cannot be read: {listed(problems)}. Replace or"
            f" remove them{', or let data.allow_unreadable drop them' if droppable else ''}"
        )
    by_patient = any(split.groups is not None for split in dataset.splits.values())
    chosen = by_patient or config.group_similar == "off"
    same = same_images(images, duplicates)
    _check_same(same, config.allow_overlap, frozenset(made if chosen else ()))
    near = near_images(images, duplicates)
    if near:
        logging.warning(
            "nearly the same pixels are in two splits, %s: %s. Are they of one patient?",
            _times(len(near)),
            listed(near),
        )
    _check_contradictions(same, config.allow_contradictions)
    say(
        f"{'the other' if facts.problems else 'all'} {len(used):,} images can be read,"
        f" {image_sizes(facts.of['size'][used])}"
    )


def _check_splits(dataset: Dataset) -> None:
    if "test" not in dataset.splits:
        logging.warning(
            "no test images: the run reports the metrics of the validation images. They are too"
            " good, because the validation images also choose the best epoch"
        )
    for name, split in dataset.splits.items():
        if not len(split):
            raise UserError(f"no images are in {name}: add some, or change the split")
    counts = {name: np.array(list(row.values())) for name, row in dataset.counts().items()}
    if dataset.task == "multiclass" and (counts["train"] > 0).sum() < 2:
        raise UserError(
            f"train has images of one class only: {dataset.counts()['train']}; add images of the"
            " others"
        )
    if text := one_class_each(dataset):
        logging.warning("%s", text)
    for name, row in counts.items():
        lacking = [repr(dataset.class_names[label]) for label in np.flatnonzero(row == 0)]
        if lacking:
            logging.warning("no image of %s shows %s", name, listed(lacking))


def one_class_each(dataset: Dataset) -> str | None:
    """Returns a warning if every image of a multi-label set shows exactly one class."""
    if dataset.task != "multilabel" or len(dataset.class_names) < 2:
        return None
    if not all((split.labels.sum(1) == 1).all() for split in dataset.splits.values()):
        return None
    return (
        f"every image shows exactly one class, but {len(dataset.class_names)} labels of each image"
        " make a multi-label set, where each class is a question of its own. If an image can have"
        " only one class, give it one label: in a table one column with the name of the class"
        " (data.csv.label_column), in an npz file integers (n,), such as y.argmax(1)"
    )


def _check_groups(dataset: Dataset, allowed: bool) -> None:
    shared = shared_groups(dataset)
    if shared:
        _refuse(
            f"{len(shared)} of the patients (groups) are in more than one split: {listed(shared)}",
            "Put all images of each patient into one split, let the program make the splits"
            " (data.fold, or for a table data.csv.split_column='')",
            allowed,
        )


def _check_same(same: list[SameImages], allowed: bool, apart: frozenset[str]) -> None:
    """Refuses the same pixels in two splits, and warns of those in one split.

    It only warns of those in the splits `apart`, which the program made, and where it did not keep
    equal images together, for the sake of patients or because it was told so.
    """
    across = [one for one in same if len(one.splits) > 1]
    for found, warn in (
        ([one.text for one in across if not one.splits <= apart], allowed),
        ([one.text for one in across if one.splits <= apart], True),
    ):
        if found:
            _refuse(
                f"the same pixels are in more than one split, {_times(len(found))}:"
                f" {listed(found)}",
                "Keep one of these files, or, if the program makes the splits, give all of them"
                " the same patient",
                warn,
            )
    within = [one for one in same if len(one.splits) == 1]
    if within:
        logging.warning(
            "the same pixels are in one split again, %s: %s",
            _times(sum(one.copies for one in within)),
            listed([one.text for one in within]),
        )


def _check_contradictions(same: list[SameImages], allowed: bool) -> None:
    found = [one.text for one in same if one.contradict]
    if not found:
        return
    text = f"images with the same pixels have different labels, {_times(len(found))}"
    if not allowed:
        raise UserError(
            f"{text}: {listed(found)}. Correct the labels, or leave these images out, or set"
            " data.allow_contradictions=True"
        )
    logging.warning("%s: %s", text, "; ".join(found))


def _refuse(problem: str, remedy: str, allowed: bool) -> None:
    if not allowed:
        raise UserError(f"{problem}. {remedy}, {_ALLOW}")
    logging.warning("%s. Results on such a split are too good", problem)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def shared_groups(dataset: Dataset) -> list[str]:
    """Names the groups that are in more than one split, and one image of each such split."""
    first: dict[str, dict[str, int]] = {}  # group -> split -> its first row there
    for name, split in dataset.splits.items():
        if split.groups is not None:
            groups, rows = np.unique(split.groups, return_index=True)
            for group, row in zip(groups.tolist(), rows.tolist(), strict=True):
                first.setdefault(group, {})[name] = row
    return [
        f"{group!r} ("
        + " and ".join(f"{dataset.splits[name].names[row]} in {name}" for name, row in of.items())
        + ")"
        for group, of in first.items()
        if len(of) > 1
    ]


def same_images(images: LabelledImages, duplicates: Duplicates) -> list[SameImages]:
    """Returns the sets of equal images, those of train first, without images in no split."""
    used = ([row for row in rows.tolist() if _split(images, row)] for rows in duplicates.sets())
    sets = [_one_of_each_split_first(images, rows) for rows in used if len(rows) > 1]
    found = []
    for rows in sorted(sets, key=lambda rows: _place(images, rows[0])):
        classes = dict.fromkeys(images.label_name(row) for row in rows)
        text = listed(_named(images, rows), between=" = ")
        if len(classes) > 1:
            text += f" (labelled {', '.join(map(repr, classes))})"
        splits = frozenset(_split(images, row) for row in rows)
        found.append(SameImages(text, len(rows) - 1, splits, len(classes) > 1))
    return found


def near_images(images: LabelledImages, duplicates: Duplicates) -> list[str]:
    """Names the pairs of nearly equal images in two splits."""
    return [
        " ~ ".join(_named(images, _in_order(images, pair)))
        for pair in duplicates.near.tolist()
        if len(splits := {_split(images, row) for row in pair}) > 1 and "" not in splits
    ]


def unreadable_images(
    images: LabelledImages, facts: Facts, rows: Iterable[int] | None = None
) -> list[str]:
    """Names the images that cannot be decoded, and the reasons."""
    wanted = facts.problems.keys() if rows is None else facts.problems.keys() & set(rows)
    return [f"{images.describe(row)} ({facts.problems[row]})" for row in sorted(wanted)]


def drop_unreadable(images: LabelledImages, facts: Facts) -> np.ndarray:
    """Returns the rows of the images that can be decoded, and warns of the others.

    All frames of a file are dropped with a frame that cannot be decoded.

    Raises:
        UserError: a split loses all its images.
    """
    problems = unreadable_images(images, facts)
    kept = facts.readable
    if images.files is not None:
        kept = ~np.isin(images.files, images.files[~kept])
    if problems:
        logging.warning(
            "%d of %d image files cannot be read: %s. Dropped, as data.allow_unreadable is set",
            len(problems),
            len(images),
            listed(problems),
        )
    splits = np.full(len(images), "all") if images.splits is None else images.splits
    for split in np.unique(splits):
        rows = np.flatnonzero(splits == split)
        if not kept[rows].any():
            of_split = "" if images.splits is None else f" of {split}"
            raise UserError(
                f"none of the {len(rows)} image files{of_split} can be read: replace them."
                f" {listed(unreadable_images(images, facts, rows.tolist()))}"
            )
    return np.flatnonzero(kept)


def without_empty_classes(kept: LabelledImages, images: LabelledImages) -> LabelledImages:
    """Drops the classes of `images` of which no image was kept."""
    shown = np.unique(kept.labels)
    lost = np.setdiff1d(images.labels, shown)
    if kept.task == "multilabel" or not len(lost):
        return kept
    left = np.setdiff1d(np.arange(len(kept.class_names)), lost)
    return dataclasses.replace(
        kept,
        labels=np.searchsorted(left, kept.labels),
        class_names=tuple(kept.class_names[label] for label in left),
    )


def image_sizes(of_images: np.ndarray) -> str:
    """Returns widths and heights (n, 2) as text: the one size, or the range of the sizes."""
    sizes = np.unique(of_images, axis=0).tolist()
    if not sizes:
        return "of no size"
    sizes.sort(key=lambda size: size[0] * size[1])
    smallest, largest = (f"{width}x{height}" for width, height in (sizes[0], sizes[-1]))
    if len(sizes) == 1:
        return f"{smallest} px"
    return f"of {len(sizes)} sizes from {smallest} to {largest} px"


def _in_order(images: LabelledImages, rows: Sequence[int]) -> list[int]:
    """Sorts rows by split: train comes first."""
    return sorted(rows, key=lambda row: _place(images, row))


def _one_of_each_split_first(images: LabelledImages, rows: Sequence[int]) -> list[int]:
    """Sorts rows by split, so that the first few are of as many splits as possible."""
    ordered = _in_order(images, rows)
    first = {_split(images, row): row for row in reversed(ordered)}.values()
    return sorted(ordered, key=lambda row: row not in first)


def _place(images: LabelledImages, row: int) -> tuple[int, int]:
    split = _split(images, row)
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), row)


def _split(images: LabelledImages, row: int) -> str:
    return "all" if images.splits is None else images.splits[row]


def _named(images: LabelledImages, rows: Sequence[int]) -> list[str]:
    if images.splits is None:
        return [images.names[row] for row in rows]
    return [f"{images.names[row]} in {images.splits[row]}" for row in rows]
