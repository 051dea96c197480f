"""A kind of place that images come from: what points at it, and how its images are found."""

import dataclasses
from collections.abc import Callable

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.sources.labelled_images import LabelledImages


@dataclasses.dataclass(frozen=True)
class Source:
    """One row of the table `medmamba_jax.data.build.SOURCES`.

    Attributes:
        points_at: what `data.path` or `data.name` has to be, in a few words for messages.
        recognises: whether `data.path` or `data.name` points at a source of this kind. It opens
            no file.
        find: finds the labelled images. It raises UserError for what the user did wrong.
    """

    points_at: str
    recognises: Callable[[DataConfig], bool]
    find: Callable[[DataConfig], LabelledImages]
