"""Drops the images that cannot be decoded, if the configuration allows it."""

import dataclasses

import numpy as np
from absl import logging

from medmamba_jax.data.auditing.checks import unreadable_images
from medmamba_jax.data.auditing.fingerprints import Facts
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.naming import listed
from medmamba_jax.errors import UserError


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
        if not kept[splits == split].any():
            raise UserError(
                f"none of the {(splits == split).sum()} image files of {split} can be read:"
                " replace them"
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
