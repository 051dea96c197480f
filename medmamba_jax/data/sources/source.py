"""A source of images: the setting that selects it, and the function that finds its images."""

import dataclasses
from collections.abc import Callable

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.labelled_images import LabelledImages


@dataclasses.dataclass(frozen=True)
class Source:
    """One row of the table `medmamba_jax.data.build.SOURCES`.

    Attributes:
        points_at: the value that `data.path` or `data.name` must have, in a few words, for
            messages.
        recognises: function that returns whether `data.path` or `data.name` selects this source. It
            does not open any file.
        find: function that finds the labelled images. It raises UserError for a mistake of the
            user.
    """

    points_at: str
    recognises: Callable[[DataConfig], bool]
    find: Callable[[DataConfig], LabelledImages]
