"""Writes and reads data sets of TensorFlow Datasets (TFDS), without TensorFlow.

This is the only module that imports `tensorflow_datasets`. It is imported when a user names such a
data set.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import io
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.public.facts import Npz, PublicSet
from medmamba_jax.data.public.layouts import read_images
from medmamba_jax.data.public.obtaining import obtained
from medmamba_jax.data.split_names import SPLITS, split_named
from medmamba_jax.errors import UserError
from medmamba_jax.files import write_atomically

# TFDS stores all images as one split. They are split into train, val and test when they are read.
_STORED_SPLIT = "images"
_READ_VERSIONS = ("3.0.0", "2.0.0")  # the first that is found; `_Builder` writes the newest

_TEXTS = ("filename", "patient", "split")


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Any set of the catalogue as a TFDS builder.

    Each record holds an image, its label, and the texts "filename", "patient" and "split"; see
    `layouts.Entry`. TFDS needs TensorFlow for every format but `file_format="array_record"`, and
    for every way to read but `as_data_source`.
    """

    VERSION = tfds.core.Version("3.0.0")
    RELEASE_NOTES: ClassVar = {
        "3.0.0": "MedMNIST is stored as arrays, not as PNG files.",
        "2.0.0": "One split, with what is needed to split it when it is read.",
    }

    def __init__(
        self, public_set: PublicSet, data_dir: Path, manual_dir: Path | None, accept_changed: bool
    ) -> None:
        checked = public_set.archive.identified or public_set.mistaken
        self.name = f"{public_set.name}_changed" if accept_changed and checked else public_set.name
        self.download_dir = data_dir / "downloads" / public_set.name
        self._public_set = public_set
        self._manual_dir = manual_dir
        self._accept_changed = accept_changed
        # The one format that TFDS writes without TensorFlow.
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3))
        if isinstance(layout := self._public_set.layout, Npz):
            image = tfds.features.Tensor(shape=layout.shape, dtype=np.uint8, encoding="bytes")
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._public_set.title,
            homepage=self._public_set.page,
            citation=self._public_set.citation,
            license=self._public_set.licence,
            features=tfds.features.FeaturesDict(
                {
                    "image": image,
                    "label": tfds.features.ClassLabel(names=self._public_set.class_names),
                    **dict.fromkeys(_TEXTS, text),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {_STORED_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        files = obtained(
            self._public_set,
            # Not through `dl_manager`, because it cannot resume an interrupted download.
            download_dir=self.download_dir,
            manual_dir=self._manual_dir,
            accept_changed=self._accept_changed,
        )
        with files as location:
            for entry, image in read_images(self._public_set, location, self._accept_changed):
                yield entry.filename, {"image": image, **vars(entry)}


def read_public(
    public_set: PublicSet, data_dir: Path, *, manual_dir: Path | None, accept_changed: bool
) -> LabelledImages:
    """Reads a set of the catalogue. It writes the set below `data_dir` first, if it is not there.

    Before it writes the set, it logs the licence and the citation. Afterwards it logs the name of
    the download, which is no longer needed. With `accept_changed` it may write to a separate
    directory, so that a later run without `accept_changed` gets the published images.

    Returns:
        The images, sorted by name; `splits` is the publisher's own split, "" without one.

    Raises:
        DataUnavailableError: the archive cannot be downloaded, or the download is damaged.
        FileNotFoundError: the set has to be written, and `manual_dir` does not exist.
        UserError: the files in `manual_dir`, or in the download, are not those of the set.
    """
    builder = _Builder(public_set, data_dir, manual_dir, accept_changed)
    versions = [data_dir / builder.name / version for version in _READ_VERSIONS]
    folder = next(filter(Path.exists, versions), None)
    if folder is None:
        folder = _prepare(builder, public_set, manual_dir)
    elif manual_dir is not None:
        logging.warning(
            "%s was prepared before, in %s, and data.public.manual_dir is not read again: delete"
            " that folder to prepare the set again",
            public_set.name,
            folder,
        )
    images, published = _read(tfds.builder_from_directory(folder), {"": _STORED_SPLIT})
    # TFDS shuffles the records. Sort them by name, so that a seed always gives the same split.
    return dataclasses.replace(images, splits=published).take(np.argsort(images.names))


def _prepare(builder: _Builder, public_set: PublicSet, manual_dir: Path | None) -> Path:
    logging.warning("%s", public_set.notice())
    folder = Path(builder.data_dir)
    # `try_download_gcs` would search Google's bucket for a prepared copy, which is not there.
    options = tfds.download.DownloadConfig(try_download_gcs=False)
    if not sys.stderr.isatty():  # in a log, bars would stand in front of an error
        tfds.disable_progress_bar()
    try:
        builder.download_and_prepare(download_config=options)
    except FileExistsError:  # another process has written the same images first
        if not folder.exists():
            raise
    if manual_dir is None:
        logging.warning(
            "%s is prepared in %s. Nothing reads the download %s any more: it may be deleted",
            public_set.name,
            folder,
            builder.download_dir / public_set.archive.name,
        )
    return folder


def read_own(name: str, data_dir: Path) -> LabelledImages:
    """Reads a data set that the user has prepared below `data_dir`.

    Returns:
        The images with the data set's own splits; `splits` is None if train is the only one.

    Raises:
        UserError: there is no such data set, or it is not one of labelled images that can be read.
    """
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        similar = difflib.get_close_matches(name, CATALOGUE)
        prepared = {path.parent.parent.name for path in data_dir.glob("*/*/dataset_info.json")}
        raise UserError(
            f"data.name = {name!r} is no public set"
            f"{f' (did you mean {similar}?)' if similar else ''}, and {data_dir} holds no TFDS data"
            f" set of this name, but {sorted(prepared) or 'none'}: see `medmamba list`,"
            " or set data.public.data_dir"
        ) from error
    features = dict(builder.info.features.items())
    for feature, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel)):
        if not isinstance(features.get(feature), kind):
            raise UserError(
                f"{builder.name} has no {kind.__name__} called {feature!r}, which is needed; it has"
                f" { ({key: type(value).__name__ for key, value in features.items()}) }"
            )
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise UserError(
            f"{builder.data_dir} is in the format {builder.info.file_format.value}: prepare it"
            " again with file_format='array_record', which can be read without TensorFlow"
        )
    stored = list(builder.info.splits)
    found = {split: [own for own in stored if split_named(own) == split] for split in SPLITS}
    if not found["train"] or max(map(len, found.values())) > 1:
        raise UserError(
            f"{builder.name} has the splits {stored}; needed are train, and one each for val and"
            " test, which may be missing"
        )
    images, _ = _read(builder, {split: names[0] for split, names in found.items() if names})
    only_train = not found["val"] and not found["test"]
    return dataclasses.replace(images, splits=None) if only_train else images


@dataclasses.dataclass(frozen=True)
class _Images:
    """The images of records: the bytes of an image file, or an array."""

    records: Sequence[Mapping[str, Any]]

    def __getitem__(self, place: int) -> bytes | np.ndarray:
        return self.records[place]["image"]


def _read(builder: Any, stored: Mapping[str, str]) -> tuple[LabelledImages, np.ndarray]:
    """Returns the images of records, whose pixels it does not read.

    Args:
        builder: a builder of TFDS.
        stored: split -> the name under which TFDS stores it.

    Returns:
        The images; and the text "split" of each (n,), "" if the records have none.
    """
    as_files = isinstance(builder.info.features["image"], tfds.features.Image)
    records = builder.as_data_source(
        "+".join(stored.values()),
        decoders={"image": tfds.decode.SkipDecoding()} if as_files else None,
    )
    labels, filenames, patients, published = _columns(records, Path(builder.data_dir), stored)
    splits: list[str] = []
    names: list[str] = []
    for split, name in stored.items():
        for row in range(builder.info.splits[name].num_examples):
            filename = filenames[len(names)]
            names.append(str(filename) or f"record {row} of the split {name} of {builder.name}")
            splits.append(split)
    for row in np.flatnonzero(patients == "")[:1]:
        if (patients != "").any():
            raise UserError(
                f"{names[row]} has no patient, but others have: prepare the set again and give each"
                " image one, of its own where none is known"
            )
    images = LabelledImages(
        _Images(records),
        labels,
        tuple(builder.info.features["label"].names),
        names=tuple(names),
        groups=patients if (patients != "").any() else None,
        splits=np.array(splits),
        name=builder.name,
        description=builder.info.description,
        origin=builder.name if (filenames != "").all() else "",
        places=np.arange(len(labels)),
    )
    return images, published


def _columns(
    records: Sequence[Mapping[str, Any]], folder: Path, stored: Mapping[str, str]
) -> list[np.ndarray]:
    """Returns the labels and three texts of each record: "filename", "patient" and "split".

    A text that a record does not have is "".

    A label cannot be read without the pixels in its record. So the function keeps all of them in
    the folder of the records, in a file that counts as long as the records' files do not change.
    """
    files = [(file.name, file.stat()) for file in sorted(folder.glob("*array_record*"))]
    now = [(name, state.st_size, state.st_mtime_ns) for name, state in files]
    key = hashlib.sha256(f"{list(stored.values())} {now}".encode()).hexdigest()
    path = folder / f"labels-{key[:16]}.npz"
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            return [kept[name] for name in ("label", *_TEXTS)]
    columns: dict[str, list[Any]] = {"label": [], **{name: [] for name in _TEXTS}}
    for record in records:
        columns["label"].append(record["label"])
        for name in _TEXTS:
            text = record.get(name, "")
            columns[name].append(text.decode() if isinstance(text, bytes) else str(text))
    found = [np.array(columns["label"], np.int32)]
    found += [np.array(columns[name], np.str_) for name in _TEXTS]
    content = io.BytesIO()
    np.savez_compressed(content, **dict(zip(columns, found, strict=True)))  # type: ignore[arg-type]
    with contextlib.suppress(OSError):  # this user may not be allowed to write there
        write_atomically(path, content.getvalue())
    return found
