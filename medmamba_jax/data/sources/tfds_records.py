"""Records of a data set that TensorFlow Datasets (TFDS) has written."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np


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
class Records:
    """The records of several stores, one store after the other; `[i]` is the encoded image i.

    All arrays are (n,).

    Attributes:
        stores: the stores.
        store_of: index of the store that holds the record.
        record_of: index of the record in that store.
        labels: integers.
        filenames, patients, published: the text features "filename", "patient" and "split"; "" if
            the record has none.
    """

    stores: Sequence[Store]
    store_of: np.ndarray
    record_of: np.ndarray
    labels: np.ndarray
    filenames: np.ndarray
    patients: np.ndarray
    published: np.ndarray

    @classmethod
    def of(cls, stores: Sequence[Store]) -> "Records":
        """Reads every record of the stores once."""
        labels = []
        texts: dict[str, list[str]] = {"filename": [], "patient": [], "split": []}
        for record in itertools.chain.from_iterable(store.records for store in stores):
            labels.append(record["label"])
            for feature, values in texts.items():
                value = record.get(feature, "")
                values.append(value.decode() if isinstance(value, bytes) else str(value))
        sizes = [len(store.records) for store in stores]
        return cls(
            stores,
            np.repeat(np.arange(len(stores)), sizes),
            np.concatenate([np.arange(size) for size in sizes]),
            np.array(labels, np.int32),
            *(np.array(texts[feature], np.str_) for feature in texts),
        )

    def __getitem__(self, place: int) -> bytes:
        return self.stores[self.store_of[place]].records[int(self.record_of[place])]["image"]

    def names(self) -> list[str]:
        """Returns the names of the files; the place of a record whose file is not known."""
        return [
            filename or f"record {record} of {self.stores[store].where}"
            for filename, record, store in zip(
                self.filenames.tolist(), self.record_of, self.store_of, strict=True
            )
        ]
