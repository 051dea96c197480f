"""Builds a data set from the `data` section of the configuration; holds the table of sources."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

import numpy as np
from absl import logging

from medmamba_jax.data.auditing.checks import drop_unreadable, without_empty_classes
from medmamba_jax.data.auditing.duplicates import Duplicates
from medmamba_jax.data.auditing.fingerprints import Facts
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.first_pass import first_pass, keep_evaluated
from medmamba_jax.data.images.decoding import parsed
from medmamba_jax.data.images.dicom import header_tag, is_dicom, mixed_windows
from medmamba_jax.data.images.formats import IMAGE_SUFFIXES
from medmamba_jax.data.images.preprocessing import ALL_FRAMES, Preprocessing
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.own_data import OwnData, labelled
from medmamba_jax.data.public.stored import PUBLIC
from medmamba_jax.data.sources.csv_source import CSV
from medmamba_jax.data.sources.frames import all_frames, frames_in, note_frames
from medmamba_jax.data.sources.image_folder import IMAGE_FOLDER
from medmamba_jax.data.sources.npz_source import NPZ
from medmamba_jax.data.sources.phantom import PHANTOM
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.data.splits.as_configured import (
    as_found,
    made_here,
    require_train_classes,
    split_as_configured,
    with_split_file,
)
from medmamba_jax.data.splits.header_patients import (
    header_patients,
    looked_at,
    note_patients,
)
from medmamba_jax.data.splits.selection import selected_rows
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import expanded
from medmamba_jax.sections import Section

_SAMPLED_FOR_WINDOWS = 200  # images, for a warning that concerns a set of DICOM files as a whole

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


@dataclasses.dataclass(frozen=True)
class Ready:
    """Images that are ready to be read, and what the first pass found in them.

    Attributes:
        dataset: the images by split.
        images: all images, also those that were dropped; `splits` is "" for these.
        facts: the facts of `images`; None if they were not wanted.
        duplicates: the equal images among them; None likewise.
        made: the names of the splits that the program made.
        cache: where pixels are kept, as text.
    """

    dataset: Dataset
    images: LabelledImages
    facts: Facts | None
    duplicates: Duplicates | None
    made: frozenset[str]
    cache: str


def find(config: DataConfig, data: OwnData | None = None) -> Dataset | LabelledImages:
    """Finds the images of a run, and selects some of them. It decodes none.

    Args:
        config: the images, and which of them; see `prepare` for their splits.
        data: images in place of those that the configuration points at: a data set, which stays as
            it is; labelled images, or an object of your own; or a dictionary of these under the
            names "train", "val" and "test", of which val or test may be missing.

    Returns:
        The data set, or labelled images with the splits that their source or `config.split_file`
        gives.

    Raises:
        DataUnavailableError: the images have to be downloaded and the download fails, or a package
            that reads them is missing.
        FileNotFoundError: a file or folder that the configuration names does not exist.
        UserError: no source recognises `config.path` or `config.name`, the configuration changes
            a setting of another source, the files or objects do not make a data set, or all images
            are of one class.
    """
    if isinstance(data, Dataset):
        require_two_classes(data)
        return data
    if data is None:
        found = find_images(config)
    else:
        if isinstance(data, Mapping) and (
            "train" not in data or len(data) == 1 or not set(data) <= set(SPLITS)
        ):
            raise UserError(
                f"data has the keys {list(data)}; it must have 'train', and 'val' or 'test' or both"
            )
        found = _selected(labelled(data), config)
    require_two_classes(found)
    if config.split_file:
        found = with_split_file(found, config)
    if found.splits is not None and not config.fold:
        require_train_classes(as_found(found))
    return found


def most_to_train(found: Dataset | LabelledImages, config: DataConfig) -> int:
    """Returns an upper bound of the number of training images, known before the split."""
    if isinstance(found, Dataset):
        return len(found.splits["train"])
    if found.splits is None or config.fold:
        return len(found)
    return int((found.splits == "train").sum())


def prepare(
    found: Dataset | LabelledImages,
    config: DataConfig,
    preprocessing: Preprocessing,
    *,
    train_on_device: bool = False,
) -> Ready:
    """Makes the first pass over images, and splits them.

    Args:
        found: what `find` returned.
        config: the cache, the checks, and the splits; see `split_as_configured`. Its
            augmentation is what the host does.
        preprocessing: how to decode and resize the images.
        train_on_device: whether the training images will live on the device.

    Raises:
        DataUnavailableError: a package that reads the images is missing.
        OSError: the cache cannot be written.
        UserError: the images cannot be split so, an image lacks the tag `config.group_tag`, or an
            image cannot be decoded; see `first_pass`.
    """
    source = labelled(found)
    tag, looked = ("", frozenset()) if isinstance(found, Dataset) else looked_at(source, config)

    sampled = set(np.linspace(0, len(source) - 1, _SAMPLED_FOR_WINDOWS).astype(int).tolist())
    kinds: dict[int, str] = {}
    frames = np.ones(len(source), int)

    def look(place: int, image: bytes | np.ndarray) -> str | None:
        frames[place] = frames_in(image)
        file = source.file(place, image) if place in looked or place in sampled else image
        if place in sampled and isinstance(file, bytes) and is_dicom(file):
            kinds[place] = parsed(file).kind()
        return header_tag(file, tag) if place in looked else None

    seen = first_pass(source, preprocessing, config, look=look)
    note_frames(frames, config.frame)
    if config.window == "auto" and (mixed := mixed_windows(Counter(kinds.values()))):
        logging.warning("%s", mixed)
    images, facts = seen.images, seen.facts
    duplicates = None if facts is None or not config.audit else Duplicates.among(facts)
    used = np.arange(len(images))
    if config.allow_unreadable and facts is not None and images.root is not None:
        used = drop_unreadable(images, facts)
    part = without_empty_classes(images.take(used), images)
    require_two_classes(part)
    if isinstance(found, Dataset):
        rows = {name: np.flatnonzero(part.splits == name) for name in found.splits}
        dataset = Dataset({name: part.take(of) for name, of in rows.items()})
        made: frozenset[str] = frozenset()
    else:
        if config.group_tag:
            headers = {row: seen.looked[place] for row, place in enumerate(used.tolist())}
            assert seen.store.identities is not None  # the pass is over
            groups = header_patients(part, headers, seen.store.identities, tag)
            part = dataclasses.replace(part, groups=groups)
        elif looked:
            note_patients({place: seen.looked[place] for place in looked})
        among = None if duplicates is None else duplicates.take(used)
        dataset, made = split_as_configured(part, config, among), made_here(part, config)
    splits = np.full(len(images), "", object)
    for name, split in dataset.splits.items():
        splits[split.places] = name
    cache = keep_evaluated(seen, dataset, config, train_on_device=train_on_device)
    images = dataclasses.replace(images, splits=splits)
    return Ready(dataset, images, facts, duplicates, made, cache)


def build_dataset(config: DataConfig, data: OwnData | None = None, *, channels: int = 3) -> Dataset:
    """Finds and splits images as a run does; the result reads the images as their source has them.

    Args:
        config, data: as in `find`.
        channels: the number of channels that the model reads.

    Raises:
        as `find` and `prepare`.
    """
    found = find(config, data)
    if not config.allow_unreadable:
        if isinstance(found, Dataset):
            return found
        similar = config.audit and config.group_similar != "off" and found.groups is None
        if not config.group_tag and not (similar and made_here(found, config)):
            return split_as_configured(found, config)
    ready = prepare(
        found, dataclasses.replace(config, cache="none"), config.preprocessing(channels)
    )
    source = labelled(found)
    return Dataset(
        {
            name: dataclasses.replace(
                split, images=source.images, places=source.places[split.places]
            )
            for name, split in ready.dataset.splits.items()
        }
    )


def as_given(data: OwnData) -> Dataset:
    """Returns images that a caller passes for evaluation, none of which is split off.

    All images of a single object, or labelled images, are the split "test".
    """
    if isinstance(data, Dataset):
        return data
    found = labelled(data)
    return Dataset({"test": found}) if found.splits is None else as_found(found)


def require_two_classes(images: Dataset | LabelledImages) -> None:
    """Raises UserError if there is one class only: a model could learn no difference."""
    names = images.class_names
    if images.task == "multiclass" and len(names) < 2:
        raise UserError(
            f"{images.description or images.name}: all are of the class {names[0]!r}, and training"
            " needs two or more classes: add images of another class, or give the place that holds"
            " all classes"
        )


def find_images(config: DataConfig) -> LabelledImages:
    """Finds the labelled images that the configuration points at, and selects some of them."""
    name = source_of(config)
    _require_defaults_elsewhere(config, name)
    found = _selected(SOURCES[name].find(config), config)
    if config.frame == ALL_FRAMES:
        return all_frames(found, config.window, config.max_pixels)
    return found


def _selected(found: LabelledImages, config: DataConfig) -> LabelledImages:
    rows = selected_rows(found.names, found.labels, config, found.splits)
    if len(rows) == len(found):
        return found
    return without_empty_classes(found.take(rows), found)


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
    path = expanded(config.path)
    if not path.exists():
        return MissingFileError(f"no folder or file {path}: set data.path to your images")
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
