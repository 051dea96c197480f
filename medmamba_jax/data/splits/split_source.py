"""From images as they were found to the three splits that a run reads."""

from pathlib import Path

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.data.splits.split_table import read_split_table
from medmamba_jax.data.splits.splitting import fold_split, split_off, stratified_split

Rows = dict[str, np.ndarray]


def split_source(source: Source, config: DataConfig) -> Dataset:
    """Splits images as the configuration says.

    The first of these that applies: by `config.split_file`; into `config.fold`; as they were found
    split, where a missing val is split off train, as large as `config.val_fraction` of train and
    test together, while a missing test stays so; by `config.val_fraction` and
    `config.test_fraction`. What is split here is stratified by class, keeps groups together, and
    depends on `config.split_seed` alone.

    Raises:
        FileNotFoundError: if there is no file `config.split_file`.
        ValueError: if a class is not in every split made here, or a split has a class that train
            lacks; or the split file does not fit the images.
    """
    if config.split_file:
        rows, how = _by_file(source, config)
    elif config.fold:
        rows, how = _by_fold(source, config)
    elif source.assigned is None:
        rows, how = _by_fractions(source, config)
    else:
        rows, how = _as_found(source, config)
    dataset = source.dataset(rows, how)
    _require_train_classes(dataset)
    return dataset


def _by_file(source: Source, config: DataConfig) -> tuple[Rows, str]:
    path = Path(config.split_file).expanduser()
    names = [source.images.name(row) for row in range(len(source.images))]
    assigned = read_split_table(path, names)
    return _present(assigned), f"split by {path}"


def _by_fold(source: Source, config: DataConfig) -> tuple[Rows, str]:
    fold, folds = config.fold_of
    rows = fold_split(
        source.images.labels,
        fold=fold,
        folds=folds,
        val_fraction=config.val_fraction,
        seed=config.split_seed,
        groups=source.images.groups,
        class_names=source.class_names,
    )
    if source.assigned is not None:
        logging.warning("data.fold is set: the splits that %s brings are set aside", source.name)
    how = f"fold {config.fold} {_by(source)}, seed {config.split_seed}: {_shares(rows)}"
    return rows, how


def _by_fractions(source: Source, config: DataConfig) -> tuple[Rows, str]:
    rows = stratified_split(
        source.images.labels,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
        groups=source.images.groups,
        class_names=source.class_names,
    )
    return rows, f"split {_by(source)}, seed {config.split_seed}: {_shares(rows)}"


def _as_found(source: Source, config: DataConfig) -> tuple[Rows, str]:
    rows = _present(source.assigned)
    if "val" in rows:
        return rows, ""
    train, groups = rows["train"], source.images.groups
    count = round(config.val_fraction * (len(train) + len(rows["test"])))
    kept, val = split_off(
        source.images.labels[train],
        count,
        seed=config.split_seed,
        name="val",
        groups=None if groups is None else groups[train],
        class_names=source.class_names,
    )
    how = f"val split off train {_by(source)}, seed {config.split_seed}"
    logging.warning("no val images: split %d of %d train images off", len(val), len(train))
    return {"train": train[kept], "val": train[val], "test": rows["test"]}, how


def _present(assigned: np.ndarray) -> Rows:
    rows = {name: np.flatnonzero(assigned == name) for name in SPLITS}
    return {name: part for name, part in rows.items() if len(part)}


def _by(source: Source) -> str:
    groups = source.images.groups
    return "by image" if groups is None else f"by {len(np.unique(groups))} patients (groups)"


def _shares(rows: Rows) -> str:
    total = sum(map(len, rows.values()))
    return ", ".join(f"{name} {len(part) / total:.1%}" for name, part in rows.items())


def _require_train_classes(dataset: Dataset) -> None:
    counts = dataset.counts()
    for name in counts:
        for label, count in counts[name].items():
            if count and not counts["train"][label]:
                raise ValueError(
                    f"{name} has {count} images of class {label!r}, train has none: add some to"
                    " train, leave the class out, or split otherwise"
                )
