"""Writes a public set to disk as a TFDS data set, without TensorFlow."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from absl import logging

from medmamba_jax.data.public.facts import PublicSet
from medmamba_jax.data.public.obtaining import Obtained, obtain

# TFDS stores all images as one split. They are split into train, val and test when they are read.
STORED_SPLIT = "images"


class PublicSetBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Any set of the catalogue as a TFDS builder.

    Each record holds the published image, its label, and the texts "filename", "patient" and
    "split"; see `PublicImage`. TFDS needs TensorFlow for every format but
    `file_format="array_record"`, and for every way to read but `as_data_source`.

    Args:
        public_set: the set.
        manual_dir: a directory with the published archive or the files in it. None means that the
            builder downloads the archive.
        accept_changed: accept an archive whose checksum differs from the published one.
        **kwargs: as for any TFDS builder.
    """

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {
        "2.0.0": "One split, with what is needed to split it when it is read."
    }

    def __init__(
        self,
        public_set: PublicSet,
        *,
        manual_dir: Path | None = None,
        accept_changed: bool = False,
        **kwargs: Any,
    ) -> None:
        self.name = _stored_name(public_set, accept_changed)
        self._public_set = public_set
        self._manual_dir = manual_dir
        self._accept_changed = accept_changed
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._public_set.title,
            homepage=self._public_set.page,
            citation=self._public_set.citation,
            license=self._public_set.licence,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=self._public_set.class_names),
                    "filename": text,
                    "patient": text,
                    "split": text,
                }
            ),
            supervised_keys=("image", "label"),
        )

    @property
    def download_dir(self) -> Path:
        """The folder of the downloads."""
        return Path(self.data_dir_root) / "downloads" / self._public_set.name

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        obtained = obtain(
            self._public_set,
            # Not through `dl_manager`, because it cannot resume an interrupted download.
            download_dir=self.download_dir,
            manual_dir=self._manual_dir,
            accept_changed=self._accept_changed,
        )
        return {STORED_SPLIT: self._generate_examples(obtained)}

    def _generate_examples(self, obtained: Obtained) -> Iterator[tuple[str, dict[str, Any]]]:
        with obtained.explained():
            for image in self._public_set.read(obtained.location):
                yield image.filename, dataclasses.asdict(image)


def prepare(
    public_set: PublicSet,
    data_dir: Path,
    *,
    manual_dir: Path | None = None,
    accept_changed: bool = False,
) -> Path:
    """Writes a set below `data_dir`, if it is not there, and returns its TFDS directory.

    Before it writes the set, it logs the licence and the citation. Afterwards it logs the name of
    the download, which is no longer needed. With `accept_changed` it may write to a separate
    directory, so that a later run without `accept_changed` gets the published images.

    Raises:
        DataUnavailableError: the archive cannot be downloaded, or the download is damaged.
        FileNotFoundError: the set has to be written, and `manual_dir` does not exist.
        UserError: the files in `manual_dir`, or in the download, are not those of the set.
    """
    builder = PublicSetBuilder(
        public_set,
        manual_dir=manual_dir,
        accept_changed=accept_changed,
        data_dir=data_dir,
        file_format="array_record",  # the one format that TFDS writes without TensorFlow
    )
    if not builder.data_path.exists():
        logging.warning("%s", public_set.notice())
        # `try_download_gcs` would search Google's bucket for a prepared copy, which is not there.
        options = tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            builder.download_and_prepare(download_config=options)
        except FileExistsError:  # another process has written the same images first
            if not builder.data_path.exists():
                raise
        if manual_dir is None:
            logging.warning(
                "%s is prepared in %s. Nothing reads the download %s any more: it may be deleted",
                public_set.name,
                builder.data_dir,
                builder.download_dir / public_set.archive.name,
            )
    elif manual_dir is not None:
        logging.warning(
            "%s was prepared before, in %s, and data.public.manual_dir is not read again: delete"
            " that folder to prepare the set again",
            public_set.name,
            builder.data_dir,
        )
    return Path(builder.data_dir)


def _stored_name(public_set: PublicSet, accept_changed: bool) -> str:
    checked = public_set.archive.identified or public_set.mistaken is not None
    return f"{public_set.name}_changed" if accept_changed and checked else public_set.name
