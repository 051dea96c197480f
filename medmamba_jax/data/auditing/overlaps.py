"""Describes the images and patients that splits share, in one text for each case."""

import numpy as np

from medmamba_jax.data.auditing.findings import Findings, Image
from medmamba_jax.data.dataset import Dataset


def shared_groups(dataset: Dataset) -> list[str]:
    """Names the groups that are in more than one split, and one image of each such split."""
    first: dict[str, dict[str, int]] = {}  # group -> split -> its first row there
    for name, split in dataset.splits.items():
        if split.groups is not None:
            groups, rows = np.unique(split.groups, return_index=True)
            for group, row in zip(groups.tolist(), rows.tolist(), strict=True):
                first.setdefault(group, {})[name] = row
    return [
        f"{group!r} ({' and '.join(_named(dataset, image) for image in images.items())})"
        for group, images in first.items()
        if len(images) > 1
    ]


def identical_images(dataset: Dataset, findings: Findings) -> tuple[list[str], list[str]]:
    """Names the sets of equal images in more than one split, and those within one split.

    If the images of a set have different classes, the text names the classes, too.
    """
    across: list[str] = []
    within: list[str] = []
    for images in findings.identical:
        text = " = ".join(_named(dataset, image) for image in images)
        classes = {dataset.splits[name].label_name(row): None for name, row in images}
        if len(classes) > 1:
            text += f" (labelled {', '.join(map(repr, classes))})"
        (across if len({name for name, _ in images}) > 1 else within).append(text)
    return across, within


def near_images(dataset: Dataset, findings: Findings) -> list[str]:
    """Names the pairs of nearly equal images in `findings.near`."""
    return [" ~ ".join(_named(dataset, image) for image in pair) for pair in findings.near]


def unreadable_images(dataset: Dataset, findings: Findings) -> list[str]:
    """Names the images that cannot be decoded, and the reasons."""
    return [
        f"{dataset.splits[name].describe(row)} ({why})" for (name, row), why in findings.unreadable
    ]


def image_sizes(findings: Findings) -> str:
    """Returns the size of the images as text, or the range of their sizes."""
    by_area = sorted((width * height, width, height) for width, height, _ in findings.sizes)
    if not by_area:
        return "of no size"
    (_, *smallest), (_, *largest) = by_area[0], by_area[-1]
    if len(by_area) == 1:
        return f"{_px(*smallest)} px"
    return f"of {len(by_area)} sizes from {_px(*smallest)} to {_px(*largest)} px"


def _px(width: int, height: int) -> str:
    return f"{width}x{height}"


def _named(dataset: Dataset, image: Image) -> str:
    name, row = image
    return f"{dataset.splits[name].names[row]} in {name}"
