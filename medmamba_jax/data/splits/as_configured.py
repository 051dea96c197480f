"""Splits the images of a source into the three splits of a run."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
from absl import logging

from medmamba_jax.data.auditing.duplicates import Duplicates, connected
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.naming import listed
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.data.splits.split_table import read_split_table
from medmamba_jax.data.stratified import PATIENTS, SIMILAR, Grouping, Rows, Strata
from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded


def split_as_configured(
    found: LabelledImages, config: DataConfig, duplicates: Duplicates | None = None
) -> Dataset:
    """Splits images by the configuration.

    The first of these that is set or known determines the split:

    - `config.fold`;
    - the splits that the images have, from their source or by `with_split_file`. A missing val is
      split off train; its size is `config.val_fraction` of train and test together. A missing test
      stays missing;
    - `config.val_fraction` and `config.test_fraction`.

    A new split is stratified by class, keeps groups together, and depends only on the images and on
    `config.split_seed`. If the groups are not known, it keeps the images together that
    `config.group_similar` names.

    Args:
        found: the images.
        config: how to split them.
        duplicates: the equal and nearly equal images among them, if these are known.

    Raises:
        UserError: a class is not in every new split, or a split has a class that train lacks.
    """
    files, file_of = _files(found)
    by, grouping = "by image", PATIENTS
    if files.groups is not None:
        by = f"by {len(np.unique(files.groups))} patients (groups)"
    if duplicates is not None and made_here(found, config):
        if files.groups is None:
            together = _together(found, duplicates, file_of, config)
            files = dataclasses.replace(files, groups=together)
            if together is not None:
                by, grouping = "by image, with similar images together", SIMILAR
        else:
            _name_conflicts(found, duplicates)
    rows, how = _rows(files, config, by, grouping)
    rows = {name: np.flatnonzero(np.isin(file_of, part)) for name, part in rows.items()}
    dataset = _dataset(found, rows, how)
    require_train_classes(dataset)
    return dataset


def split_problems(
    found: LabelledImages, config: DataConfig, duplicates: Duplicates | None
) -> list[str]:
    """Returns why `split_as_configured` refuses these images; nothing if it splits them."""
    try:
        split_as_configured(found, config, duplicates)
    except UserError as error:
        return [str(error)]
    return []


def made_here(found: LabelledImages, config: DataConfig) -> frozenset[str]:
    """Returns the splits that `split_as_configured` makes; train and val if it splits val off."""
    if config.fold or found.splits is None:
        return frozenset(SPLITS)
    return frozenset() if (found.splits == "val").any() else frozenset({"train", "val"})


def with_split_file(found: LabelledImages, config: DataConfig) -> LabelledImages:
    """Returns the images with the splits that the table `config.split_file` gives their files.

    Raises:
        FileNotFoundError: the table does not exist.
        UserError: the table does not fit the images.
    """
    path = expanded(config.split_file)
    gone: Literal["warn", "stop", "allow"] = "warn"
    if config.split_strict:
        gone = "stop"
    elif config.exclude or config.subset:  # then the table may name more images
        gone = "allow"
    files, file_of = _files(found)
    splits = read_split_table(path, files.names, gone=gone)[file_of]
    description = f"{found.description}; split by {path}"
    return dataclasses.replace(found, splits=splits, description=description)


def _together(
    found: LabelledImages, duplicates: Duplicates, file_of: np.ndarray, config: DataConfig
) -> np.ndarray | None:
    """Returns the group of each file, so that similar images stay together; None if all differ."""
    if config.group_similar == "off":
        return None
    numbers, chains = duplicates.groups(near=config.group_similar == "near")
    for chain in chains:
        logging.warning(
            "%d images hang together, each nearly equal to the next, which is too many to keep in"
            " one split; only those with the same pixels stay together: %s",
            len(chain),
            listed([found.names[row] for row in chain.tolist()]),
        )
    of_files = int(numbers.max(initial=-1)) + 1  # vertices: the numbers, then the files
    groups = connected(of_files + file_of, numbers)[of_files:]
    split = np.ones(len(found), bool)
    if found.splits is not None and not config.fold:  # only val is split off train
        split = found.splits == "train"
    files = np.unique(file_of[split])
    return None if len(np.unique(groups[files])) == len(files) else groups


def _name_conflicts(found: LabelledImages, duplicates: Duplicates) -> None:
    assert found.groups is not None  # this is called only where it is known
    groups = found.groups.tolist()
    conflicts = [
        f"{found.names[one]} of {groups[one]!r} and {found.names[other]} of {groups[other]!r}"
        for one, other, _ in duplicates.pairs()
        if groups[one] != groups[other]
    ]
    if conflicts:
        logging.warning(
            "the same or nearly the same pixels belong to different patients (groups), %d times."
            " The split keeps patients together, not these images: %s",
            len(conflicts),
            listed(conflicts),
        )


def _files(found: LabelledImages) -> tuple[LabelledImages, np.ndarray]:
    """Returns an image of each file, named by it, and the row of the file of each image."""
    if found.files is None:
        return found, np.arange(len(found))
    names, first, file_of = np.unique(found.files, return_index=True, return_inverse=True)
    order = np.argsort(first)
    files = dataclasses.replace(found.take(first[order]), names=tuple(names[order].tolist()))
    return files, np.argsort(order)[file_of]


def as_found(found: LabelledImages) -> Dataset:
    """Returns the splits of the source; without any, all images as one split "all"."""
    if found.splits is None:
        return Dataset({"all": found})
    return _dataset(found, _present(found.splits))


def _dataset(found: LabelledImages, rows: Mapping[str, np.ndarray], how: str = "") -> Dataset:
    if how:
        found = dataclasses.replace(found, description=f"{found.description}; {how}")
    return Dataset({name: found.take(part) for name, part in rows.items()})


def _rows(
    found: LabelledImages, config: DataConfig, by: str, grouping: Grouping
) -> tuple[Rows, str]:
    """Returns the rows of each split, and how they were made; "" if the images have splits."""
    strata = Strata(found.labels, config.split_seed, found.groups, found.class_names, grouping)
    test = config.test_fraction
    if config.fold_of is not None:
        rows = strata.by_fold(*config.fold_of, val=config.val_fraction)
        test = 1 / config.fold_of[1]
        how = f"fold {config.fold} {by}"
        if found.splits is not None:
            logging.warning("data.fold is set: the splits that %s brings are not used", found.name)
    elif found.splits is None:
        rows = strata.by_fractions(val=config.val_fraction, test=test)
        how = f"split {by}"
    else:
        return _by_source(strata, _present(found.splits), config, by)
    _warn_of_sizes(strata, rows, {"val": config.val_fraction, "test": test})
    shares = ", ".join(f"{name} {len(part) / len(found):.1%}" for name, part in rows.items())
    return rows, f"{how}, seed {config.split_seed}: {shares}"


def _by_source(strata: Strata, rows: Rows, config: DataConfig, by: str) -> tuple[Rows, str]:
    _require_train_and_another(rows)
    if "val" in rows:
        return rows, ""
    train = rows["train"]
    count = round(config.val_fraction * (len(train) + len(rows["test"])))
    kept, val = strata.take(train).split_off(count, "val")
    logging.warning(
        "no val images: split %d of %d train images off by the seed %d",
        len(val),
        len(train),
        config.split_seed,
    )
    _warn_of_sizes(strata.take(train), {"train": kept, "val": val}, {"val": count / len(train)})
    how = f"val split off train {by}, seed {config.split_seed}"
    return {"train": train[kept], "val": train[val], "test": rows["test"]}, how


def _warn_of_sizes(strata: Strata, rows: Rows, fractions: Mapping[str, float]) -> None:
    """Warns if groups make a split less than half, or more than twice, as large as it should be.

    Args:
        strata: what was split.
        rows: the splits, of which train has what the others leave.
        fractions: the fraction that each split but train should have.
    """
    count = len(strata.labels)
    wanted = {"train": 1 - sum(fractions.values()), **fractions}
    shares = {name: len(part) / count for name, part in rows.items()}
    if strata.groups is None or all(
        wanted[name] / 2 <= share <= wanted[name] * 2 for name, share in shares.items()
    ):
        return
    largest = np.unique(strata.groups, return_counts=True)[1].max()
    logging.warning(
        "the splits are far from the sizes that were asked for (%s), because images stay together:"
        " up to %d of %d of one %s. Leave some of them out (data.exclude), or set data.split_file",
        ", ".join(f"{name} {share:.1%}, not {wanted[name]:.1%}" for name, share in shares.items()),
        largest,
        count,
        strata.grouping.one,
    )


def _present(assigned: np.ndarray) -> Rows:
    rows = {name: np.flatnonzero(assigned == name) for name in SPLITS}
    return {name: part for name, part in rows.items() if len(part)}


def _require_train_and_another(splits: Collection[str]) -> None:
    if "train" not in splits or len(splits) == 1:
        raise UserError(
            f"no image is left for {'val or test' if 'train' in splits else 'train'}: leave fewer"
            " out (data.exclude, damaged images), or split otherwise (data.split_file, data.fold)"
        )


def require_train_classes(dataset: Dataset) -> None:
    """Raises UserError if train or all others are missing, or one has a class that train lacks."""
    _require_train_and_another(dataset.splits)
    counts = dataset.counts()
    for name in counts:
        for label, count in counts[name].items():
            if count and not counts["train"][label]:
                raise UserError(
                    f"{name} has {count} images of class {label!r}, train has none: add some to"
                    " train, leave the class out, or split otherwise"
                )
