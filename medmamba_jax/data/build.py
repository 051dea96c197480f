"""Choosing a data set by its configuration."""

import dataclasses
from collections.abc import Callable, Mapping

from medmamba_jax.data.config import ALL_FRAMES, DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.sources.csv_source import find_table
from medmamba_jax.data.sources.frames import AllFrames
from medmamba_jax.data.sources.image_folder import find_image_folder
from medmamba_jax.data.sources.npz_source import find_arrays
from medmamba_jax.data.sources.phantom import draw_phantoms
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.splits.split_source import split_source
from medmamba_jax.data.tfds_source import build_tfds

# A new kind of source is one file, one row here and its name in `config.SOURCES`.
FINDERS: Mapping[str, Callable[[DataConfig], Source]] = {
    "phantom": draw_phantoms,
    "image_folder": find_image_folder,
    "csv": find_table,
    "npz": find_arrays,
}
# These split their images themselves.
BUILDERS: Mapping[str, Callable[[DataConfig], Dataset]] = {"tfds": build_tfds}


def build_dataset(config: DataConfig) -> Dataset:
    """Builds the data set that `config.source` names.

    Raises:
        DataUnavailableError: if images have to be fetched and cannot be.
        FileNotFoundError: if a file or directory named in the configuration does not exist.
        ValueError: if the files found do not make a data set.
    """
    if config.source in FINDERS:
        dataset = split_source(FINDERS[config.source](config), config)
    else:
        dataset = BUILDERS[config.source](config)
    if config.frame != ALL_FRAMES:
        return dataset
    splits = {name: AllFrames(split, config.window) for name, split in dataset.splits.items()}
    return dataclasses.replace(dataset, splits=splits)
