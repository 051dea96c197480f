"""Data sets that TensorFlow Datasets (TFDS) has written, read without TensorFlow.

`tensorflow_datasets` is imported when a data set is built, not before: the other sources do
without it.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.public.facts import PublicSet
from medmamba_jax.data.public.splits import require_splits, split_rows
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.sources.tfds_split import TfdsSplit, read_index
from medmamba_jax.data.split_names import SPLITS, split_named
from medmamba_jax.data.splits.split_source import split_source
from medmamba_jax.data.splits.splitting import split_off, stratified_split

DEFAULT_DATA_DIR = "~/tensorflow_datasets"


def build_tfds(config: DataConfig) -> Dataset:
    """Opens the public set `config.name`, or what the user has prepared under this name.

    A public set is prepared in `config.root` first, unless that has been done. Any other TFDS data
    set has to be there already, in the ArrayRecord format, with an `Image` called "image" and a
    `ClassLabel` called "label". Its own splits are used, "validation" and "valid" as val. If there
    are train and test, but no val, that is split off train, `config.val_fraction` of both
    together; if there is just train, all is split. Both by `config.split_seed`, classes in
    proportion. A text called "patient" gives the groups, and no patient comes into two splits that
    are made here; it is empty everywhere or nowhere. One called "filename" names images in
    messages.

    Raises:
        DataUnavailableError: if the images can neither be downloaded nor found in
            `config.manual_dir`.
        FileNotFoundError: if `config.manual_dir` is needed and does not exist.
        ValueError: if there is no data set of this name, it is not split as `config.splits` says,
            or what was found is not the expected data set.
    """
    root = Path(config.root or DEFAULT_DATA_DIR).expanduser()
    if config.name in CATALOGUE:
        return _public(CATALOGUE[config.name], root, config)
    return _own(root, config)


def _public(public_set: PublicSet, root: Path, config: DataConfig) -> Dataset:
    dealt = bool(config.fold or config.split_file)
    if not dealt:
        require_splits(public_set, config.splits)  # before gigabytes are downloaded
    import tensorflow_datasets as tfds

    from medmamba_jax.data.public.builder import STORED_SPLIT, prepare

    directory = prepare(
        public_set,
        root,
        manual_dir=Path(config.manual_dir).expanduser() if config.manual_dir else None,
        accept_changed=config.accept_changed_files,
    )
    builder = tfds.builder_from_directory(directory)
    everything = _open(builder, STORED_SPLIT, builder.name)
    # TFDS shuffles what it writes; by name, the same images are always split in the same way.
    everything = everything.take(np.argsort(everything.filenames))
    _warn_of_difference(
        f"{builder.name}, images", _counts(public_set, everything), public_set.class_counts
    )
    source = Source(
        name=builder.name,
        description=builder.info.description,
        class_names=tuple(builder.info.features["label"].names),
        images=everything,
        assigned=None if dealt else _assigned(public_set, everything, builder.name, config),
    )
    return split_source(source, config)


def _assigned(
    public_set: PublicSet, everything: TfdsSplit, name: str, config: DataConfig
) -> np.ndarray:
    """Returns the split of each image, as `config.splits` says."""
    rows = split_rows(
        public_set,
        config.splits,
        labels=everything.labels,
        patients=everything.groups,
        published=everything.published,
        seed=config.split_seed,
    )
    if config.splits == "paper" or public_set.paper_is_official:
        sizes = {name: len(part) for name, part in rows.items()}
        _warn_of_difference(f"{name}, splits", sizes, public_set.split_sizes)
    assigned = np.empty(len(everything), object)
    for split, part in rows.items():
        assigned[part] = split
    return assigned


def _counts(public_set: PublicSet, split: TfdsSplit) -> dict[str, int]:
    counts = np.bincount(split.labels, minlength=len(public_set.class_names))
    return dict(zip(public_set.class_names, counts.tolist(), strict=True))


def _warn_of_difference(
    what: str, found: Mapping[str, int], published: Mapping[str, int | None]
) -> None:
    if None not in published.values() and found != published:
        logging.warning("%s: %s here, but %s in the paper", what, found, published)


def _own(root: Path, config: DataConfig) -> Dataset:
    if config.splits == "patient":
        raise ValueError(f"data.splits='patient' is for public sets, and {config.name} is none")
    for field in ("fold", "split_file"):
        if getattr(config, field):
            raise ValueError(
                f"data.{field} is not for sets that you prepared with TFDS, such as {config.name}:"
                " leave it empty, and set data.split_seed for other splits"
            )
    builder = _find(root, config.name)
    _require_readable(builder)
    splits = {
        name: _open(builder, stored, f"the split {stored} of {builder.name}")
        for name, stored in _own_splits(builder).items()
    }
    _require_every_patient(splits)
    return _dataset(builder, _completed(splits, config))


def _find(root: Path, name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=root)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        similar = difflib.get_close_matches(name, CATALOGUE)
        prepared = {path.parent.parent.name for path in root.glob("*/*/dataset_info.json")}
        raise ValueError(
            f"data.name = {name!r} is no public set"
            f"{f' (did you mean {similar}?)' if similar else ''}, and {root} holds no TFDS data"
            f" set of this name, but {sorted(prepared) or 'none'}: see `python -m"
            " medmamba_jax.data list`, or set data.root"
        ) from error


def _require_readable(builder: Any) -> None:
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    for name, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel)):
        if not isinstance(features.get(name), kind):
            raise ValueError(
                f"{builder.name} has no {kind.__name__} called {name!r}, which is needed; it has"
                f" { ({key: type(value).__name__ for key, value in features.items()}) }"
            )
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise ValueError(
            f"{builder.data_dir} is in the format {builder.info.file_format.value}: prepare it"
            " again with file_format='array_record', which can be read without TensorFlow"
        )


def _require_every_patient(splits: Mapping[str, TfdsSplit]) -> None:
    without = [
        split.describe(row)
        for split in splits.values()
        for row in np.flatnonzero(split.patients == "")[:1]
    ]
    if without and any(split.groups is not None for split in splits.values()):
        raise ValueError(
            f"{without[0]} has no patient, but others have: prepare the set again and give each"
            " image one, of its own where none is known"
        )


def _own_splits(builder: Any) -> dict[str, str]:
    """Returns our names of the splits -> those under which they are stored."""
    stored = list(builder.info.splits)
    names = {split: [name for name in stored if split_named(name) == split] for split in SPLITS}
    if not names["train"] or max(map(len, names.values())) > 1:
        raise ValueError(
            f"{builder.name} has the splits {stored}; needed are train, and one each for val and"
            " test, which may be missing"
        )
    return {split: found[0] for split, found in names.items() if found}


def _completed(splits: dict[str, TfdsSplit], config: DataConfig) -> dict[str, TfdsSplit]:
    if "val" in splits:
        return splits
    train = splits["train"]
    options = {"seed": config.split_seed, "groups": train.groups}
    if "test" in splits:
        count = round(config.val_fraction * (len(train) + len(splits["test"])))
        kept, val = split_off(train.labels, count, name="val", **options)
        rows = {"train": kept, "val": val}
    else:
        rows = stratified_split(
            train.labels,
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            **options,
        )
    logging.warning(
        "split %s off the split train by the seed %d",
        " and ".join(
            f"{len(part)} images for {name}" for name, part in rows.items() if name != "train"
        ),
        config.split_seed,
    )
    return splits | {name: train.take(part) for name, part in rows.items()}


def _open(builder: Any, stored: str, where: str) -> TfdsSplit:
    import tensorflow_datasets as tfds

    records = builder.as_data_source(stored, decoders={"image": tfds.decode.SkipDecoding()})
    return TfdsSplit(records, read_index(records), where)


def _dataset(builder: Any, splits: dict[str, TfdsSplit]) -> Dataset:
    return Dataset(
        name=builder.name,
        description=builder.info.description,
        class_names=tuple(builder.info.features["label"].names),
        splits=splits,
        synthetic=False,
    )
