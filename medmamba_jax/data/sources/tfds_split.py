"""A split of a data set that TensorFlow Datasets (TFDS) has written."""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from medmamba_jax.data.dataset import Example, digest


@dataclasses.dataclass(frozen=True)
class Store:
    """Records as TFDS stored them.

    Attributes:
        records: random access to {"image": bytes, "label": int, ...}.
        where: the name of the records in messages.
    """

    records: Sequence[dict[str, Any]]
    where: str


@dataclasses.dataclass(frozen=True)
class Index:
    """The facts about n records, from one pass over them. All arrays are (n,) unless noted.

    Attributes:
        stores: index of the store that holds the record.
        places: index of the record in that store.
        labels: integers.
        filenames, patients, published: the text features "filename", "patient" and "split"; "" if
            the record has none.
        images_sha256: SHA-256 of the encoded image, uint8 (n, 32).
    """

    stores: np.ndarray
    places: np.ndarray
    labels: np.ndarray
    filenames: np.ndarray
    patients: np.ndarray
    published: np.ndarray
    images_sha256: np.ndarray

    def take(self, rows: np.ndarray) -> "Index":
        return Index(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def read_index(stores: Sequence[Store]) -> Index:
    """Reads every record of the stores once."""
    labels, hashes = [], []
    texts: dict[str, list[str]] = {"filename": [], "patient": [], "split": []}
    for record in itertools.chain.from_iterable(store.records for store in stores):
        labels.append(record["label"])
        hashes.append(np.frombuffer(hashlib.sha256(record["image"]).digest(), np.uint8))
        for feature, values in texts.items():
            value = record.get(feature, "")
            values.append(value.decode() if isinstance(value, bytes) else str(value))
    sizes = [len(store.records) for store in stores]
    return Index(
        np.repeat(np.arange(len(stores)), sizes),
        np.concatenate([np.arange(size) for size in sizes]),
        np.array(labels, np.int32),
        filenames=np.array(texts["filename"], np.str_),
        patients=np.array(texts["patient"], np.str_),
        published=np.array(texts["split"], np.str_),
        images_sha256=np.array(hashes, np.uint8).reshape(-1, hashlib.sha256().digest_size),
    )


class TfdsSplit:
    """Some of the records of a TFDS data set; their images stay encoded.

    Args:
        stores: all records.
        index: the records that belong to the split.

    Attributes:
        labels, groups, weights: see `Split`.
        stores, filenames, patients, published: see `Index`.
    """

    def __init__(self, stores: Sequence[Store], index: Index):
        self._stores = stores
        self._index = index
        self.labels = index.labels
        self.stores = index.stores
        self.filenames = index.filenames
        self.patients = index.patients
        self.published = index.published
        self.groups = index.patients if np.any(index.patients != "") else None
        self.weights = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        record = self._store(index).records[int(self._index.places[index])]
        return {"image": record["image"], "label": int(record["label"])}

    def name(self, index: int) -> str:
        """Returns the name of the file; if the set does not have it, the place of the record."""
        return self.filenames[index] or self.describe(index)

    def describe(self, index: int) -> str:
        filename = self.filenames[index]
        return f"{filename or f'record {self._index.places[index]}'} of {self._store(index).where}"

    def digest(self) -> str:
        """Identifies images by their encoded bytes."""
        return digest(self.labels, map(bytes, self._index.images_sha256))

    def take(self, rows: np.ndarray) -> "TfdsSplit":
        """Returns the images of these rows."""
        return TfdsSplit(self._stores, self._index.take(rows))

    def _store(self, index: int) -> Store:
        return self._stores[self._index.stores[index]]
