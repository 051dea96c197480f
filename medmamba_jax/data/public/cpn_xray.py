"""The CPN chest X-ray set as a TFDS builder that needs no TensorFlow."""

import contextlib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from medmamba_jax.data.public.archives import (
    CLASS_NAMES,
    find_manual_files,
    labelled_images,
    open_files,
)
from medmamba_jax.data.dataset import DataUnavailableError
from medmamba_jax.data.decoding import open_image
from medmamba_jax.data.splitting import stratified_split

_IMAGES = 5228
_VAL_IMAGES = 521
_TEST_IMAGES = 1567
_SPLIT_SEED = 0
_CONNECT_SECONDS = 30


class CpnXray(tfds.core.GeneratorBasedBuilder):
    """COVID-19, pneumonia and normal chest X-rays: 5,228 images of 256 x 256 pixels.

    Source: S. Kumar, S. Shastri et al., "Covid19-Pneumonia-Normal Chest X-Ray Images", Mendeley
    Data, V1 (2022), doi:10.17632/dvntn9yhd2.1. Classes: COVID (1,626), NORMAL (1,802) and
    PNEUMONIA (1,800).

    The split has the sizes that are reported for MedMamba (train 3,140, val 521, test 1,567), but
    not its images: the authors' index lists are not public. It is made here, stratified by class,
    by the seed 0; an archive of another size is split in the same proportions.

    Only `file_format="array_record"` can be written, and `as_data_source` read, without
    TensorFlow.

    Args:
        manual_dir: a directory with the published archive, its inner zip, or the extracted class
            folders. None means download.
        **kwargs: as for any TFDS builder.
    """

    name = "cpn_xray"
    VERSION = tfds.core.Version("1.0.0")
    PAGE = "https://data.mendeley.com/datasets/dvntn9yhd2/1"
    URL = "https://prod-dcd-datasets-cache-zipfiles.s3.eu-west-1.amazonaws.com/dvntn9yhd2-1.zip"

    def __init__(self, *, manual_dir: Path | None = None, **kwargs):
        self._manual_dir = manual_dir
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Covid19-Pneumonia-Normal chest X-ray images (CPN)",
            homepage=self.PAGE,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        location = self._manual_files() if self._manual_dir else self._download(dl_manager)
        with self._explained(location), open_files(location) as files:
            images = labelled_images(files.namelist())
        if len(images) != _IMAGES:
            logging.warning(
                "%s holds %d images; the published set has %d", location, len(images), _IMAGES
            )
        rows = stratified_split(
            np.array([CLASS_NAMES.index(label) for _, label in images]),
            val_fraction=_VAL_IMAGES / _IMAGES,
            test_fraction=_TEST_IMAGES / _IMAGES,
            seed=_SPLIT_SEED,
        )
        return {
            split: self._generate_examples(location, [images[i] for i in rows[split]])
            for split in ("train", "val", "test")
        }

    def _generate_examples(self, location: Path, images: list[tuple[str, str]]):
        with self._explained(location), open_files(location) as files:
            for name, label in images:
                image = files.read(name)
                try:
                    open_image(image)
                except ValueError as error:
                    raise ValueError(
                        f"{name}: {error}. Extract the archive, replace or remove the file, and"
                        " set data.manual_dir to the extracted folder"
                    ) from error
                yield name, {"image": image, "label": label}

    def _manual_files(self) -> Path:
        if not self._manual_dir.is_dir():
            raise FileNotFoundError(
                f"no directory {self._manual_dir}: set data.manual_dir to the directory that holds"
                f" the archive from {self.PAGE} or its extracted folder"
            )
        location = find_manual_files(self._manual_dir)
        if location is None:
            raise self._unavailable(f"{self._manual_dir} holds neither class folders nor a zip")
        return location

    def _download(self, dl_manager: tfds.download.DownloadManager) -> Path:
        try:
            _check_connection(self.URL)
            return Path(dl_manager.download(self.URL))
        except (tfds.download.DownloadError, OSError) as error:
            raise self._unavailable(f"{self.URL} could not be downloaded ({error})") from error

    @contextlib.contextmanager
    def _explained(self, location: Path) -> Iterator[None]:
        """Turns a damaged or incomplete archive into an error with a remedy."""
        try:
            yield
        except (zipfile.BadZipFile, EOFError) as error:
            raise self._rejected(location, f"is damaged ({error})") from error
        except ValueError as error:
            raise self._rejected(location, f"cannot be used: {error}") from error

    def _rejected(self, location: Path, reason: str) -> Exception:
        if self._manual_dir:
            return ValueError(f"{location} {reason}")
        # TFDS would take its cached download again at the next try.
        location.unlink(missing_ok=True)
        location.with_name(f"{location.name}.INFO").unlink(missing_ok=True)
        return self._unavailable(f"the download from {self.URL} {reason}")

    def _unavailable(self, reason: str) -> DataUnavailableError:
        return DataUnavailableError(
            f"{reason}. Try again, or get the zip from {self.PAGE} and put it in data.manual_dir;"
            " `python main.py` runs on synthetic images without any download"
        )


def _check_connection(url: str) -> None:
    """Asks for the headers once: TFDS retries a dead connection for minutes before it gives up."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
    except urllib.error.HTTPError as answer:
        # A server answered; whether it serves the file is for the download to find out.
        answer.close()
