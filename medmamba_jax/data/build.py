"""Choosing a data set by its configuration."""

import dataclasses
from collections.abc import Callable, Mapping

from medmamba_jax.data.config import ALL_FRAMES, DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.frames import AllFrames
from medmamba_jax.data.image_folder import build_image_folder
from medmamba_jax.data.phantom import build_phantom
from medmamba_jax.data.tfds_source import build_tfds

# A new data set is one file, one row here and its name in `config.SOURCES`.
BUILDERS: Mapping[str, Callable[[DataConfig], Dataset]] = {
    "phantom": build_phantom,
    "image_folder": build_image_folder,
    "tfds": build_tfds,
}


def build_dataset(config: DataConfig) -> Dataset:
    """Builds the data set that `config.source` names.

    Raises:
        DataUnavailableError: if images have to be fetched and cannot be.
        FileNotFoundError: if a directory named in the configuration does not exist.
        ValueError: if the files found do not make a data set.
    """
    dataset = BUILDERS[config.source](config)
    if config.frame != ALL_FRAMES:
        return dataset
    splits = {name: AllFrames(split, config.window) for name, split in dataset.splits.items()}
    return dataclasses.replace(dataset, splits=splits)
