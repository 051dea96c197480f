"""Reads data sets that TensorFlow Datasets (TFDS) has written, without TensorFlow.

`tensorflow_datasets` is imported only when such a data set is built, because the other sources do
not need it.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.public.facts import PublicSet
from medmamba_jax.data.public.splits import require_splits, split_rows
from medmamba_jax.data.sources.labelled_images import LabelledImages
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.sources.tfds_split import Store, TfdsSplit, read_index
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
    everything = _open([Store(_records(builder, STORED_SPLIT), builder.name)])
    # TFDS shuffles the records. Sort them by name, so that a seed always gives the same split.
    everything = everything.take(np.argsort(everything.filenames))
    _warn_of_difference(
        f"{builder.name}, images", _counts(public_set, everything), public_set.class_counts
    )
    assigned = None if split_anew else _assigned(public_set, everything, builder.name, config)
    return _labelled(builder, everything, assigned)


def _assigned(
    public_set: PublicSet, everything: TfdsSplit, name: str, config: DataConfig
) -> np.ndarray:
    """Returns the split of each image, as `config.public.splits` defines it."""
    rows = split_rows(
        public_set,
        config.public.splits,
        labels=everything.labels,
        patients=everything.groups,
        published=everything.published,
        seed=config.split_seed,
    )
    if config.public.splits == "paper" or public_set.paper_is_official:
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


def _own(config: DataConfig) -> LabelledImages:
    if config.public.splits == "patient":
        raise UserError(
            f"data.public.splits='patient' is for public sets, and {config.name} is none"
        )
    builder = _find(config.public.data_folder, config.name)
    _require_readable(builder)
    splits = _own_splits(builder)
    images = _open(
        [
            Store(_records(builder, stored), f"the split {stored} of {builder.name}")
            for stored in splits.values()
        ]
    )
    _require_every_patient(images)
    # If train is the only split, the images still have to be split.
    assigned = np.array(list(splits))[images.stores] if len(splits) > 1 else None
    return _labelled(builder, images, assigned)


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


def _require_every_patient(images: TfdsSplit) -> None:
    without = np.flatnonzero(images.patients == "")
    if images.groups is not None and len(without):
        raise UserError(
            f"{images.describe(without[0])} has no patient, but others have: prepare the set again"
            " and give each image one, of its own where none is known"
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


def _open(stores: Sequence[Store]) -> TfdsSplit:
    return TfdsSplit(stores, read_index(stores))


def _labelled(builder: Any, images: TfdsSplit, assigned: np.ndarray | None) -> LabelledImages:
    return LabelledImages(
        name=builder.name,
        description=builder.info.description,
        class_names=tuple(builder.info.features["label"].names),
        images=images,
        assigned=assigned,
    )


PUBLIC = Source(
    points_at="the name of a public set, or of a set prepared with TFDS",
    recognises=lambda config: config.name != "",
    find=find_stored,
)
