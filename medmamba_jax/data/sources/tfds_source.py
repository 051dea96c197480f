"""Reads data sets that TensorFlow Datasets (TFDS) has written, without TensorFlow.

`tensorflow_datasets` is imported only when such a data set is built, because the other sources do
not need it.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.public.facts import PublicSet
from medmamba_jax.data.public.splits import require_splits, split_rows
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.sources.tfds_records import Records, Store
from medmamba_jax.data.split_names import SPLITS, split_named
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
    return _own(config)


def is_stored(config: DataConfig) -> bool:
    """Whether `config.name` is a public set or a set prepared in the TFDS data directory."""
    return config.name in CATALOGUE or (config.public.data_folder / config.name).is_dir()


def _public(public_set: PublicSet, config: DataConfig) -> LabelledImages:
    split_anew = bool(config.fold or config.split_file)
    if not split_anew:
        require_splits(public_set, config.public.splits)  # before gigabytes are downloaded
    import tensorflow_datasets as tfds

    from medmamba_jax.data.public.builder import STORED_SPLIT, prepare

    manual_dir = config.public.manual_dir
    directory = prepare(
        public_set,
        config.public.data_folder,
        manual_dir=Path(manual_dir).expanduser() if manual_dir else None,
        accept_changed=config.public.accept_changed_files,
    )
    builder = tfds.builder_from_directory(directory)
    records = Records.of([Store(_records(builder, STORED_SPLIT), builder.name)])
    # TFDS shuffles the records. Sort them by name, so that a seed always gives the same split.
    order = np.argsort(records.filenames)
    everything = _labelled(builder, records, None).take(order)
    _warn_of_difference(f"{builder.name}, images", everything.counts(), public_set.class_counts)
    if split_anew:
        return everything
    published = records.published[order]
    return dataclasses.replace(
        everything, splits=_splits(public_set, everything, published, config)
    )


def _splits(
    public_set: PublicSet, everything: LabelledImages, published: np.ndarray, config: DataConfig
) -> np.ndarray:
    """Returns the split of each image, as `config.public.splits` defines it."""
    rows = split_rows(
        public_set,
        config.public.splits,
        labels=everything.labels,
        patients=everything.groups,
        published=published,
        seed=config.split_seed,
    )
    if config.public.splits == "paper" or public_set.paper_is_official:
        sizes = {name: len(part) for name, part in rows.items()}
        _warn_of_difference(f"{everything.name}, splits", sizes, public_set.split_sizes)
    splits = np.empty(len(everything), object)
    for split, part in rows.items():
        splits[part] = split
    return splits


def _warn_of_difference(
    what: str, found: Mapping[str, int], published: Mapping[str, int | None]
) -> None:
    if None not in published.values() and found != published:
        logging.warning("%s: %s here, but %s in the paper", what, found, published)


def _own(config: DataConfig) -> LabelledImages:
    if config.public.splits == "patient":
        raise UserError(
            f"data.public.splits='patient' is for public sets, and {config.name} is none"
        )
    builder = _find(config.public.data_folder, config.name)
    _require_readable(builder)
    splits = _own_splits(builder)
    records = Records.of(
        [
            Store(_records(builder, stored), f"the split {stored} of {builder.name}")
            for stored in splits.values()
        ]
    )
    _require_every_patient(records)
    # If train is the only split, the images still have to be split.
    found = np.array(list(splits))[records.store_of] if len(splits) > 1 else None
    return _labelled(builder, records, found)


def _find(root: Path, name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=root)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        similar = difflib.get_close_matches(name, CATALOGUE)
        prepared = {path.parent.parent.name for path in root.glob("*/*/dataset_info.json")}
        raise UserError(
            f"data.name = {name!r} is no public set"
            f"{f' (did you mean {similar}?)' if similar else ''}, and {root} holds no TFDS data"
            f" set of this name, but {sorted(prepared) or 'none'}: see `medmamba list`,"
            " or set data.public.data_dir"
        ) from error


def _require_readable(builder: Any) -> None:
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    for name, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel)):
        if not isinstance(features.get(name), kind):
            raise UserError(
                f"{builder.name} has no {kind.__name__} called {name!r}, which is needed; it has"
                f" { ({key: type(value).__name__ for key, value in features.items()}) }"
            )
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise UserError(
            f"{builder.data_dir} is in the format {builder.info.file_format.value}: prepare it"
            " again with file_format='array_record', which can be read without TensorFlow"
        )


def _require_every_patient(records: Records) -> None:
    without = np.flatnonzero(records.patients == "")
    if 0 < len(without) < len(records.patients):
        first = without[0]
        where = records.stores[records.store_of[first]].where
        raise UserError(
            f"{records.filenames[first] or records.record_of[first]} of {where} has no patient, but"
            " others have: prepare the set again and give each image one, of its own where none is"
            " known"
        )


def _own_splits(builder: Any) -> dict[str, str]:
    """Returns split in `SPLITS` -> name under which TFDS stores it."""
    stored = list(builder.info.splits)
    names = {split: [name for name in stored if split_named(name) == split] for split in SPLITS}
    if not names["train"] or max(map(len, names.values())) > 1:
        raise UserError(
            f"{builder.name} has the splits {stored}; needed are train, and one each for val and"
            " test, which may be missing"
        )
    return {split: found[0] for split, found in names.items() if found}


def _records(builder: Any, stored: str) -> Sequence[dict[str, Any]]:
    import tensorflow_datasets as tfds

    return builder.as_data_source(stored, decoders={"image": tfds.decode.SkipDecoding()})


def _labelled(builder: Any, records: Records, splits: np.ndarray | None) -> LabelledImages:
    return LabelledImages(
        records,
        records.labels,
        tuple(builder.info.features["label"].names),
        names=tuple(records.names()),
        groups=records.patients if np.any(records.patients != "") else None,
        splits=splits,
        name=builder.name,
        description=builder.info.description,
        origin=builder.name if records.filenames.all() else "",
        places=np.arange(len(records.labels)),
    )


PUBLIC = Source(
    points_at="the name of a public set, or of a set prepared with TFDS",
    recognises=lambda config: config.name != "",
    find=find_stored,
)
