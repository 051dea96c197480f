"""Builds a data set from the `data` section of the configuration; holds the table of sources."""

import dataclasses
from pathlib import Path

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.images.formats import IMAGE_SUFFIXES
from medmamba_jax.data.images.preprocessing import ALL_FRAMES
from medmamba_jax.data.sources.csv_source import CSV
from medmamba_jax.data.sources.frames import AllFrames
from medmamba_jax.data.sources.image_folder import IMAGE_FOLDER
from medmamba_jax.data.sources.labelled_images import LabelledImages
from medmamba_jax.data.sources.npz_source import NPZ
from medmamba_jax.data.sources.phantom import PHANTOM
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.sources.tfds_source import PUBLIC
from medmamba_jax.data.splits.as_configured import split_as_configured
from medmamba_jax.errors import UserError
from medmamba_jax.sections import Section

# Name -> source. The settings that only one source reads are in the section of the same name, such
# as `data.csv`. `source_of` tries the newest entry first, so that a script can add a source for an
# ending that another source also recognises.
SOURCES: dict[str, Source] = {
    "public": PUBLIC,  # recognises every name that is left
    "phantom": PHANTOM,
    "npz": NPZ,
    "csv": CSV,
    "folder": IMAGE_FOLDER,
}


def build_dataset(config: DataConfig) -> Dataset:
    """Builds the data set that `config.path` or `config.name` points at.

    Raises:
        DataUnavailableError: the images have to be downloaded, and the download fails.
        FileNotFoundError: a file or folder that the configuration names does not exist.
        UserError: no source recognises `config.path` or `config.name`, the configuration changes
            a setting of another source, or the files do not make a data set.
    """
    dataset = split_as_configured(find_images(config), config)
    if config.frame != ALL_FRAMES:
        return dataset
    splits = {name: AllFrames(split, config.window) for name, split in dataset.splits.items()}
    return dataclasses.replace(dataset, splits=splits)


def find_images(config: DataConfig) -> LabelledImages:
    """Finds the labelled images that the configuration points at; see `build_dataset`."""
    name = source_of(config)
    _require_defaults_elsewhere(config, name)
    return SOURCES[name].find(config)


def source_of(config: DataConfig) -> str:
    """Returns the name in `SOURCES` of the source that `config.path` or `config.name` points at.

    Raises:
        FileNotFoundError: there is nothing at `config.path`.
        UserError: neither is set, or no source recognises the one that is set.
    """
    for name, source in reversed(SOURCES.items()):
        if source.recognises(config):
            return name
    raise _not_recognised(config)


def _not_recognised(config: DataConfig) -> Exception:
    if not config.path:
        return UserError(
            "data.path and data.name are unset: set data.path to your images, or data.name to a"
            " public set (`medmamba list`) or to phantom"
        )
    path = Path(config.path).expanduser()
    if not path.exists():
        return FileNotFoundError(f"no folder or file {path}: set data.path to your images")
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return UserError(
            f"{path} is a single image: set data.path to the folder of all images, or to a table"
        )
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        return UserError(f"{path} is an archive: extract it, and set data.path to its folder")
    known = "; ".join(source.points_at for source in reversed(SOURCES.values()))
    return UserError(f"no source recognises the file {path}. The sources are: {known}")


def _require_defaults_elsewhere(config: DataConfig, name: str) -> None:
    """Refuses changed settings of other sources than `name`: they would have no effect."""
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        if isinstance(section, Section) and field.name != name and section.changed():
            setting, value = next(iter(section.changed().items()))
            raise UserError(
                f"{section.title}.{setting} is {value!r}, but the images come from the source"
                f" {name!r} ({SOURCES[name].points_at}), which does not read it: leave it at its"
                f" default {getattr(type(section), setting)!r}"
            )
