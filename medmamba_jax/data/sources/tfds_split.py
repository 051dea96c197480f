"""A split of a data set that TensorFlow Datasets (TFDS) has written."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from medmamba_jax.data.dataset import Example, digest


@dataclasses.dataclass(frozen=True)
class Index:
    """What one pass over stored records tells of each of them.

    Attributes:
        places: where in the store it is.
        labels: integers.
        filenames, patients, published: the text features "filename", "patient" and "split"; ""
            where there are none.
        images_sha256: of its encoded image, uint8 (n, 32).
    """

    places: np.ndarray
    labels: np.ndarray
    filenames: np.ndarray
    patients: np.ndarray
    published: np.ndarray
    images_sha256: np.ndarray

    def take(self, rows: np.ndarray) -> "Index":
        return Index(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def read_index(records: Sequence[dict[str, Any]]) -> Index:
    """Reads every record once."""
    labels, hashes = [], []
    texts: dict[str, list[str]] = {"filename": [], "patient": [], "split": []}
    for record in records:
        labels.append(record["label"])
        hashes.append(np.frombuffer(hashlib.sha256(record["image"]).digest(), np.uint8))
        for feature, values in texts.items():
            value = record.get(feature, "")
            values.append(value.decode() if isinstance(value, bytes) else str(value))
    return Index(
        np.arange(len(labels)),
        np.array(labels, np.int32),
        *(np.array(values, np.str_) for values in texts.values()),
        np.array(hashes, np.uint8).reshape(-1, hashlib.sha256().digest_size),
    )


class TfdsSplit:
    """Some of the records of a TFDS data set; images stay encoded.

    Args:
        records: random access to {"image": bytes, "label": int, ...}.
        index: those that belong to the split.
        where: names the records for messages.

    Attributes:
        labels, groups, weights: see `Split`.
        filenames, patients, published: see `Index`.
    """

    def __init__(self, records: Sequence[dict[str, Any]], index: Index, where: str):
        self._records = records
        self._index = index
        self._where = where
        self.labels = index.labels
        self.filenames = index.filenames
        self.patients = index.patients
        self.published = index.published
        self.groups = index.patients if np.any(index.patients != "") else None
        self.weights = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        record = self._records[int(self._index.places[index])]
        return {"image": record["image"], "label": int(record["label"])}

    def name(self, index: int) -> str:
        """The file's name, where the set knows it."""
        return self.filenames[index] or self.describe(index)

    def describe(self, index: int) -> str:
        filename = self.filenames[index]
        return f"{filename or f'record {self._index.places[index]}'} of {self._where}"

    def digest(self) -> str:
        """Identifies images by their encoded bytes."""
        return digest(self.labels, map(bytes, self._index.images_sha256))

    def take(self, rows: np.ndarray) -> "TfdsSplit":
        """Returns the images of these rows."""
        return TfdsSplit(self._records, self._index.take(rows), self._where)
