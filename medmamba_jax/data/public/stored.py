"""The source of public sets with their splits, and of sets that the user has prepared with TFDS."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.public.facts import PublicSet
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.stratified import Strata
from medmamba_jax.errors import UserError


def find_stored(config: DataConfig) -> LabelledImages:
    """Opens the public set `config.name`, or the set that the user has prepared under this name.

    A public set that is not in `data_dir` is prepared first. Any other TFDS data set must already
    be there, in the ArrayRecord format, with an `Image` called "image" and a `ClassLabel` called
    "label". Its own splits are used; "validation" and "valid" mean val. A text feature "patient"
    gives the groups; it must be empty for all images or for none. A text feature "filename" names
    images in messages.

    Raises:
        DataUnavailableError: the archive cannot be downloaded, or the download is damaged.
        FileNotFoundError: the set has to be prepared, and `manual_dir` does not exist.
        UserError: there is no data set of this name, it does not support `config.public.splits`,
            or the files are not those of the data set.
    """
    if config.name in CATALOGUE:
        return _public(CATALOGUE[config.name], config)
    if config.public.splits == "patient":
        raise UserError(
            f"data.public.splits='patient' is for public sets, and {config.name} is none"
        )
    from medmamba_jax.data.public.tfds_sets import read_own

    return read_own(config.name, config.public.data_folder)


def is_stored(config: DataConfig) -> bool:
    """Whether `config.name` is a public set or a set prepared in the TFDS data directory."""
    return config.name in CATALOGUE or (config.public.data_folder / config.name).is_dir()


def _public(public_set: PublicSet, config: DataConfig) -> LabelledImages:
    kind = config.public.splits
    split_anew = bool(config.fold or config.split_file)
    if not split_anew and kind not in public_set.splits:  # before gigabytes are downloaded
        raise UserError(
            f"{public_set.name} has no splits {kind!r}; set data.public.splits to one of"
            f" {public_set.splits}"
        )
    from medmamba_jax.data.public.tfds_sets import read_public

    manual_dir = config.public.manual_dir
    images = read_public(
        public_set,
        config.public.data_folder,
        manual_dir=Path(manual_dir).expanduser() if manual_dir else None,
        accept_changed=config.public.accept_changed_files,
    )
    _warn_of_difference(f"{images.name}, images", images.counts(), public_set.class_counts)
    if split_anew:
        return dataclasses.replace(images, splits=None)
    rows = split_rows(public_set, kind, images, config.split_seed)
    if kind == "paper" or public_set.paper_is_official:
        sizes = {name: len(part) for name, part in rows.items()}
        _warn_of_difference(f"{images.name}, splits", sizes, public_set.split_sizes)
    splits = np.empty(len(images), object)
    for split, part in rows.items():
        splits[part] = split
    return dataclasses.replace(images, splits=splits)


def split_rows(
    public_set: PublicSet, kind: str, images: LabelledImages, seed: int
) -> dict[str, np.ndarray]:
    """Splits a public set.

    The authors' lists of images are not public, so the images of the splits "paper" differ from
    theirs. A copy of the set with another number of images is split in the same proportions. If a
    publisher's own split has no validation images, some are split off its training images, by
    patient. They are the same fraction of the training images as in the paper.

    Args:
        public_set: the set.
        kind: a name in `PUBLIC_SPLITS` and in `public_set.splits`.
        images: all images; their `splits` are the publisher's own, "" without one.
        seed: the same seed and images give the same splits.

    Returns:
        "train", "val", "test" -> ascending indices.

    Raises:
        UserError: the set has too few images for this kind of split.
    """
    sizes = public_set.split_sizes
    strata = Strata(images.labels, seed, images.groups, public_set.class_names)
    if kind != "official" and not public_set.paper_is_official:
        if kind != "patient":
            strata = dataclasses.replace(strata, groups=None)
        return strata.by_fractions(
            val=sizes["val"] / public_set.num_images, test=sizes["test"] / public_set.num_images
        )
    rows = {name: np.flatnonzero(images.splits == name) for name in sizes}
    if not public_set.paper_is_official:
        given = rows["train"]
        count = round(len(given) * sizes["val"] / (sizes["train"] + sizes["val"]))
        kept, val = strata.take(given).split_off(count, "val")
        rows |= {"train": given[kept], "val": given[val]}
    for name, part in rows.items():
        if not len(part):
            raise UserError(f"{public_set.name}: the published split has no {name} images")
    return rows


def _warn_of_difference(
    what: str, found: Mapping[str, int], published: Mapping[str, int | None]
) -> None:
    if None not in published.values() and found != published:
        logging.warning("%s: %s here, but %s in the paper", what, found, published)


PUBLIC = Source(
    points_at="the name of a public set, or of a set prepared with TFDS",
    recognises=lambda config: config.name != "",
    find=find_stored,
)
