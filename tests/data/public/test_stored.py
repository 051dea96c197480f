"""TFDS data sets that the user has prepared."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.data_sources.base import BaseDataSource

from medmamba_jax.data import DataConfig, build_dataset, write_split_table
from medmamba_jax.data.config import PublicConfig

CLASSES = ("cat", "dog")


class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A user's set: its splits are given as split -> number of images."""

    name = "own"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, sizes, make, features, **kwargs):
        self._sizes, self._make, self._features = sizes, make, features
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self._features)
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, n) for split, n in self._sizes.items()}

    def _generate_examples(self, split, n):
        for i in range(n):
            yield i, self._make(split, i)


FEATURES = {
    "image": tfds.features.Image(shape=(None, None, 1)),
    "label": tfds.features.ClassLabel(names=CLASSES),
}


@pytest.fixture
def prepare(tmp_path, noise_png):
    """Returns a function that writes a set into `tmp_path` and returns its images by split."""

    def prepare(sizes, features=FEATURES, **more):
        seeds = {split: 1000 * k for k, split in enumerate(sizes)}

        def make(split, i):
            values = {"image": noise_png(seeds[split] + i), "label": i % 2}
            values |= {name: value(i) for name, value in more.items()}
            return {name: values[name] for name in features}

        Own(sizes, make, features, data_dir=tmp_path).download_and_prepare()
        return {
            split: {noise_png(seeds[split] + i): CLASSES[i % 2] for i in range(n)}
            for split, n in sizes.items()
        }

    return prepare


@pytest.fixture
def build(tmp_path):
    def build(name="own", splits="paper", **fields):
        public = PublicConfig(data_dir=str(tmp_path), splits=splits)
        return build_dataset(DataConfig(name=name, public=public, **fields))

    return build


def contents(split):
    return {split.read(i): CLASSES[split.labels[i]] for i in range(len(split))}


@pytest.mark.parametrize("val", ["val", "validation", "valid"])
def test_its_own_splits(prepare, build, val):
    written = prepare({"train": 12, val: 6, "test": 8, "unlabelled": 3})
    dataset = build()
    assert dataset.name == "own" and dataset.class_names == CLASSES
    assert set(dataset.splits) == {"train", "val", "test"}
    for name, split in dataset.splits.items():
        stored = val if name == "val" else name
        assert contents(split) == written[stored]
        np.testing.assert_array_equal(split.labels, [split.labels[i] for i in range(len(split))])
        assert split.groups is None
        assert split.describe(2) == f"record 2 of the split {stored} of own"
    assert len({split.digest() for split in dataset.splits.values()}) == 3


def test_val_is_split_off_train(prepare, build, caplog):
    written = prepare({"train": 30, "test": 10})
    splits = build(val_fraction=0.2).splits
    assert contents(splits["test"]) == written["test"]
    assert len(splits["val"]) == 8 and len(splits["train"]) == 22
    assert contents(splits["train"]) | contents(splits["val"]) == written["train"]
    assert "no val images: split 8 of 30 train images off by the seed 0" in caplog.text


def test_missing_test_stays_missing(prepare, build):
    written = prepare({"train": 12, "validation": 6})
    splits = {name: contents(split) for name, split in build().splits.items()}
    assert splits == {"train": written["train"], "val": written["validation"]}


def test_everything_is_split(prepare, build):
    written = prepare({"train": 40})
    splits = {name: contents(split) for name, split in build().splits.items()}
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 24,
        "val": 4,
        "test": 12,
    }
    assert splits["train"] | splits["val"] | splits["test"] == written["train"]


def test_patients_and_file_names(prepare, build):
    text = tfds.features.Text()
    prepare(
        {"train": 60},
        FEATURES | {"patient": text, "filename": text},
        patient=lambda i: f"p{i // 3}",
        filename=lambda i: f"{i}.png",
    )
    groups = {}
    for name, split in build().splits.items():
        groups[name] = set(split.groups)
        for i, patient in enumerate(split.groups):
            number = int(split.describe(i).partition(".png of own")[0])
            assert patient == f"p{number // 3}" and number % 2 == split.labels[i]
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["val"]
    assert not groups["val"] & groups["test"]


def test_records_are_read_once_for_their_labels_and_again_if_they_change(
    prepare, build, tmp_path, monkeypatch
):
    read = []
    get = BaseDataSource.__getitem__
    monkeypatch.setattr(
        BaseDataSource, "__getitem__", lambda self, key: read.append(key) or get(self, key)
    )
    text = tfds.features.Text()
    more = {"patient": lambda i: f"p{i}", "filename": lambda i: f"{i}.png"}
    features = FEATURES | {"patient": text, "filename": text}
    prepare({"train": 12, "val": 6}, features, **more)
    first = build().splits
    assert len(read) == 18
    again = build().splits
    assert len(read) == 18
    for name, split in first.items():
        assert split.names == again[name].names
        assert split.labels.tolist() == again[name].labels.tolist()
        assert split.groups.tolist() == again[name].groups.tolist()
        assert contents(split) == contents(again[name])
    read.clear()
    for kept in tmp_path.rglob("labels-*.npz"):  # a file that is cut off does not count
        kept.write_bytes(kept.read_bytes()[:100])
    assert build().splits["val"].names == first["val"].names and len(read) == 18
    shutil.rmtree(tmp_path / "own")
    more["patient"] = lambda i: f"q{i}"
    prepare({"train": 12, "val": 6}, features, **more)
    assert set(build().splits["val"].groups) == {f"q{i}" for i in range(6)}
    for file in tmp_path.rglob("*array_record*"):
        os.utime(file, (1e9, 1e9))
    build()
    assert len(read) == 3 * 18


def test_a_patient_for_some_images_only(prepare, build):
    prepare(
        {"train": 12, "val": 4, "test": 4},
        FEATURES | {"patient": tfds.features.Text()},
        patient=lambda i: f"p{i}" if i else "",
    )
    with pytest.raises(ValueError, match=r"of the split train of own has no patient, but others"):
        build()


@pytest.mark.parametrize("sizes", [{"test": 4}, {"train": 4, "val": 4, "valid": 4, "test": 4}])
def test_splits_that_will_not_do(prepare, build, sizes):
    prepare(sizes)
    with pytest.raises(ValueError, match=r"own has the splits .*; needed are train"):
        build()


def test_other_features_are_refused(prepare, build):
    number = {"image": FEATURES["image"], "label": tfds.features.Scalar(dtype=np.int32)}
    prepare({"train": 4}, number)
    with pytest.raises(ValueError, match=r"no ClassLabel called 'label'.*'label': 'Scalar'"):
        build()


def test_other_formats_are_refused(tmp_path, prepare, build):
    prepare({"train": 4})
    info = tmp_path / "own" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"format tfrecord: .*file_format='array_record'"):
        build()


def test_patients_are_for_public_sets(prepare, build):
    prepare({"train": 4})
    with pytest.raises(ValueError, match="own is none"):
        build(splits="patient")


def test_folds_test_every_image_once(prepare, build):
    written = prepare({"train": 20, "val": 4, "test": 6})
    tested = [contents(build(fold=f"{fold}/3").splits["test"]) for fold in (1, 2, 3)]
    assert [len(images) for images in tested] == [10, 10, 10]
    assert tested[0] | tested[1] | tested[2] == written["train"] | written["val"] | written["test"]


def test_a_split_file_says_where_images_belong(tmp_path, prepare, build):
    prepare({"train": 20, "val": 4, "test": 6})
    first = build(fold="2/3")
    write_split_table(tmp_path / "split.csv", first)
    again = build(split_file=str(tmp_path / "split.csv"))
    assert {name: split.digest() for name, split in again.splits.items()} == {
        name: split.digest() for name, split in first.splits.items()
    }


def test_a_split_file_needs_different_names(tmp_path, prepare, build):
    prepare(
        {"train": 20, "val": 4},
        FEATURES | {"filename": tfds.features.Text()},
        filename=lambda i: f"{i}.png",
    )
    write_split_table(tmp_path / "split.csv", build())
    with pytest.raises(ValueError, match=r"two images are called 0\.png"):
        build(split_file=str(tmp_path / "split.csv"))


@pytest.mark.parametrize("name", ["mnist", "kvasr", "../own", "own:7.0.0"])
def test_a_name_that_is_not_there(tmp_path, prepare, build, name):
    prepare({"train": 4})
    with pytest.raises(ValueError, match=rf"data\.name = '{name}' is no .* but \['own'\]") as error:
        build(name=name)
    assert ("did you mean ['kvasir'" in str(error.value)) == (name == "kvasr")
    assert str(tmp_path) in str(error.value)


def test_a_version_can_be_named(prepare, build):
    prepare({"train": 20})
    assert build(name="own:1.0.0").splits["train"].digest() == build().splits["train"].digest()
