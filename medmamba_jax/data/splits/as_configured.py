"""Splits the images of a source into the three splits of a run."""

from pathlib import Path

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.sources.labelled_images import LabelledImages
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.data.splits.split_table import read_split_table
from medmamba_jax.data.splits.splitting import fold_split, split_off, stratified_split
from medmamba_jax.errors import UserError

Rows = dict[str, np.ndarray]


def split_as_configured(found: LabelledImages, config: DataConfig) -> Dataset:
    """Splits images by the configuration.

    The first of these that is set or known determines the split:

    - `config.split_file`;
    - `config.fold`;
    - the splits that the source gives. A missing val is split off train; its size is
      `config.val_fraction` of train and test together. A missing test stays missing;
    - `config.val_fraction` and `config.test_fraction`.

    A new split is stratified by class, keeps groups together, and depends only on the images and on
    `config.split_seed`.

    Raises:
        FileNotFoundError: the file `config.split_file` does not exist.
        UserError: a class is not in every new split, a split has a class that train lacks, or the
            split file does not fit the images.
    """
    if config.split_file:
        rows, how = _by_file(found, config)
    elif config.fold:
        rows, how = _by_fold(found, config)
    elif found.assigned is None:
        rows, how = _by_fractions(found, config)
    else:
        rows, how = _as_found(found, config)
    dataset = found.dataset(rows, how)
    _require_train_classes(dataset)
    return dataset


def _by_file(found: LabelledImages, config: DataConfig) -> tuple[Rows, str]:
    path = Path(config.split_file).expanduser()
    names = [found.images.name(row) for row in range(len(found.images))]
    assigned = read_split_table(path, names)
    return _present(assigned), f"split by {path}"


def _by_fold(found: LabelledImages, config: DataConfig) -> tuple[Rows, str]:
    assert config.fold_of is not None  # this is called only where it is set
    fold, folds = config.fold_of
    rows = fold_split(
        found.images.labels,
        fold=fold,
        folds=folds,
        val_fraction=config.val_fraction,
        seed=config.split_seed,
        groups=found.images.groups,
        class_names=found.class_names,
    )
    if found.assigned is not None:
        logging.warning("data.fold is set: the splits that %s brings are not used", found.name)
    how = f"fold {config.fold} {_by(found)}, seed {config.split_seed}: {_shares(rows)}"
    return rows, how


def _by_fractions(found: LabelledImages, config: DataConfig) -> tuple[Rows, str]:
    rows = stratified_split(
        found.images.labels,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
        groups=found.images.groups,
        class_names=found.class_names,
    )
    return rows, f"split {_by(found)}, seed {config.split_seed}: {_shares(rows)}"


def _as_found(found: LabelledImages, config: DataConfig) -> tuple[Rows, str]:
    assert found.assigned is not None  # this is called only where it is known
    rows = _present(found.assigned)
    if "val" in rows:
        return rows, ""
    train, groups = rows["train"], found.images.groups
    count = round(config.val_fraction * (len(train) + len(rows["test"])))
    kept, val = split_off(
        found.images.labels[train],
        count,
        seed=config.split_seed,
        name="val",
        groups=None if groups is None else groups[train],
        class_names=found.class_names,
    )
    how = f"val split off train {_by(found)}, seed {config.split_seed}"
    logging.warning(
        "no val images: split %d of %d train images off by the seed %d",
        len(val),
        len(train),
        config.split_seed,
    )
    return {"train": train[kept], "val": train[val], "test": rows["test"]}, how


def _present(assigned: np.ndarray) -> Rows:
    rows = {name: np.flatnonzero(assigned == name) for name in SPLITS}
    return {name: part for name, part in rows.items() if len(part)}


def _by(found: LabelledImages) -> str:
    groups = found.images.groups
    return "by image" if groups is None else f"by {len(np.unique(groups))} patients (groups)"


def _shares(rows: Rows) -> str:
    total = sum(map(len, rows.values()))
    return ", ".join(f"{name} {len(part) / total:.1%}" for name, part in rows.items())


def _require_train_classes(dataset: Dataset) -> None:
    counts = dataset.counts()
    for name in counts:
        for label, count in counts[name].items():
            if count and not counts["train"][label]:
                raise UserError(
                    f"{name} has {count} images of class {label!r}, train has none: add some to"
                    " train, leave the class out, or split otherwise"
                )
