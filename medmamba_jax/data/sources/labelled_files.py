"""Drops the image files that cannot be decoded."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.images.decoding import count_frames, open_image
from medmamba_jax.data.images.preprocessing import ALL_FRAMES
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.naming import listed
from medmamba_jax.errors import UserError


def drop_unreadable(found: LabelledImages, config: DataConfig) -> LabelledImages:
    """Decodes every file with the settings of the configuration, and drops the damaged ones.

    A class that loses all its images is dropped, too.

    Raises:
        UserError: a split, or all but one class, loses all its images.
    """

    def problem(row: int) -> str | None:
        try:
            image = found.read(row)
            assert isinstance(image, bytes)
            every = config.frame == ALL_FRAMES
            for frame in range(count_frames(image)) if every else (config.frame,):
                open_image(image, window=config.window, frame=frame)
        except (OSError, ValueError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor(usable_cpus()) as pool:
        problems = list(pool.map(problem, range(len(found))))
    unreadable = [f"{found.describe(row)} ({why})" for row, why in enumerate(problems) if why]
    if not unreadable:
        return found
    logging.warning(
        "%d of %d image files cannot be read: %s. Dropped, as data.allow_unreadable is set",
        len(unreadable),
        len(found),
        listed(unreadable),
    )
    kept = np.array([why is None for why in problems], bool)
    splits = np.full(len(found), "all") if found.splits is None else found.splits
    for split in np.unique(splits):
        if not kept[splits == split].any():
            raise UserError(
                f"none of the {(splits == split).sum()} image files of {split} can be read:"
                " replace them"
            )
    return _without_empty_classes(found.take(np.flatnonzero(kept)))


def _without_empty_classes(found: LabelledImages) -> LabelledImages:
    shown = np.unique(found.labels)
    if found.task == "multilabel" or len(shown) == len(found.class_names):
        return found
    return dataclasses.replace(
        found,
        labels=np.searchsorted(shown, found.labels),
        class_names=tuple(found.class_names[label] for label in shown),
    )
