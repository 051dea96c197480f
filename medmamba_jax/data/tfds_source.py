"""Data sets that TensorFlow Datasets (TFDS) prepares, read without TensorFlow.

`tensorflow_datasets` is imported when a data set is built, not before: the other sources do
without it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset, Example, digest

_DEFAULT_DATA_DIR = "~/tensorflow_datasets"


class TfdsSplit:
    """A split of a prepared TFDS data set; images stay encoded.

    Args:
        records: random access to {"image": bytes, "label": int, ...}.
        labels: integers (n,).
    """

    groups = None

    def __init__(self, records: Any, labels: np.ndarray):
        self._records = records
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        return {"image": record["image"], "label": int(record["label"])}

    def describe(self, index: int) -> str:
        return f"record {index}"

    def digest(self) -> str:
        """Identifies images by their encoded bytes."""
        return digest(self.labels, (record["image"] for record in self._records))


def build_tfds(config: DataConfig) -> Dataset:
    """Prepares the data set `config.name` if that has not been done, and opens it.

    Raises:
        DataUnavailableError: if the images can neither be downloaded nor found in
            `config.manual_dir`.
        FileNotFoundError: if `config.manual_dir` is set and does not exist.
        ValueError: if no builder has that name, or what was found is not the expected data set.
    """
    import tensorflow_datasets as tfds

    builder = _builder_class(config.name)(
        manual_dir=Path(config.manual_dir).expanduser() if config.manual_dir else None,
        data_dir=Path(config.root or _DEFAULT_DATA_DIR).expanduser(),
        file_format="array_record",  # the one format that TFDS writes without TensorFlow
    )
    # `try_download_gcs` would look for a prepared copy in Google's bucket, which has none.
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return Dataset(
        name=builder.name,
        description=builder.info.description,
        class_names=tuple(builder.info.features["label"].names),
        splits={name: _open_split(builder, name) for name in ("train", "val", "test")},
        synthetic=False,
    )


def _builder_class(name: str) -> type:
    from medmamba_jax.data.public.cpn_xray import CpnXray

    builders = {CpnXray.name: CpnXray}
    if name not in builders:
        raise ValueError(f"data.name must be one of {tuple(builders)} for TFDS; got {name!r}")
    return builders[name]


def _open_split(builder: Any, name: str) -> TfdsSplit:
    import tensorflow_datasets as tfds

    skip_decoding = {"image": tfds.decode.SkipDecoding()}
    records = builder.as_data_source(name, decoders=skip_decoding)
    labels = np.array([record["label"] for record in records], np.int32)
    return TfdsSplit(records, labels)
