import numpy as np
import pytest

from medmamba_jax.data import DataConfig, build_dataset

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 8, 9, 3), np.uint8)


def medmnist(labels=None, **more):
    labels = np.arange(60) % 3 if labels is None else labels
    rows = {"train": slice(0, 30), "val": slice(30, 40), "test": slice(40, 60)}
    arrays = {}
    for name, part in rows.items():
        arrays |= {f"{name}_images": IMAGES[part], f"{name}_labels": labels[part]}
    return {**arrays, **more}


@pytest.fixture
def build(tmp_path):
    def build(arrays, **settings):
        np.savez(tmp_path / "set.npz", **arrays)
        return build_dataset(DataConfig(path=str(tmp_path / "set.npz"), **settings))

    return build


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_the_arrays_of_medmnist_are_the_splits(build, shape):
    dataset = build(medmnist((np.arange(60, dtype=np.uint8) % 3).reshape(shape)))
    assert dataset.class_names == ("0", "1", "2") and dataset.name == "set"
    start = 0
    for name, count in (("train", 30), ("val", 10), ("test", 20)):
        split = dataset.splits[name]
        assert len(split) == count
        for row in range(count):
            np.testing.assert_array_equal(split.read(row), IMAGES[start + row])
            assert split.labels[row] == (start + row) % 3
            assert split.describe(row) == f"{name}_images[{row}]"
        start += count


def test_both_layouts_in_one_file_are_refused(build):
    with pytest.raises(ValueError, match=r"holds x, .* and train_images, .*: save only those"):
        build(medmnist(x=IMAGES, y=np.arange(60) % 2))


def test_x_and_y_are_split_by_group(build):
    groups = np.repeat(np.arange(20), 3)
    dataset = build({"x": IMAGES, "y": np.arange(60) % 2, "groups": groups})
    found = [set(split.groups) for split in dataset.splits.values()]
    assert sum(map(len, found)) == len(set.union(*found)) == 20
    assert [len(split) for split in dataset.splits.values()] == [36, 6, 18]
    name = dataset.splits["test"].describe(0)
    row = int(name.removeprefix("x[").removesuffix("]"))
    np.testing.assert_array_equal(dataset.splits["test"].read(0), IMAGES[row])


def test_labels_need_not_begin_at_zero_and_may_have_names(build):
    labels = np.array([10, 2])[np.arange(60) % 2]
    assert build(medmnist(labels)).class_names == ("2", "10")
    assert build(medmnist(labels)).splits["train"].labels[:2].tolist() == [1, 0]
    names = np.array(["normal", "ill", "not here"])
    dataset = build(medmnist(np.arange(60) % 2, class_names=names))
    assert dataset.counts()["val"] == {"normal": 5, "ill": 5, "not here": 0}


def test_a_table_of_labels_is_multi_label(build):
    labels = RNG.integers(0, 2, (60, 4)).astype(np.int8)
    labels[0, 1] = -1
    dataset = build(medmnist(labels))
    assert dataset.task == "multilabel" and dataset.class_names == ("0", "1", "2", "3")
    assert np.isnan(dataset.splits["train"].labels[0, 1])
    np.testing.assert_array_equal(dataset.splits["val"].labels, labels[30:40])


def test_missing_val_is_split_off_train(build):
    arrays = medmnist()
    arrays = {key: array for key, array in arrays.items() if "val" not in key}
    assert [len(split) for split in build(arrays).splits.values()] == [25, 5, 20]


def test_missing_test_stays_missing(build):
    arrays = {key: array for key, array in medmnist().items() if "test" not in key}
    assert {name: len(split) for name, split in build(arrays).splits.items()} == {
        "train": 30,
        "val": 10,
    }


def test_real_arrays_are_read(real_data):
    dataset = build_dataset(DataConfig(path=str(real_data / "medmnist" / "breastmnist.npz")))
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 546,
        "val": 78,
        "test": 156,
    }
    assert dataset.counts()["test"] == {"0": 42, "1": 114}


@pytest.mark.parametrize("name", ["valid", "validation", "VAL"])
def test_the_usual_spellings_of_val_are_val(build, name):
    renamed = {key.replace("val", name): array for key, array in medmnist().items()}
    splits = build(renamed).splits
    assert {split: len(found) for split, found in splits.items()} == {
        "train": 30,
        "val": 10,
        "test": 20,
    }
    np.testing.assert_array_equal(splits["val"].read(3), IMAGES[33])
    assert splits["val"].describe(3) == f"{name}_images[3]"


def test_two_names_of_one_split_are_refused(build):
    more = {"valid_images": IMAGES[:2], "valid_labels": np.arange(2)}
    with pytest.raises(
        ValueError, match=r"set\.npz: it has both val_images and valid_images.*keep one"
    ):
        build(medmnist(**more))


@pytest.mark.parametrize(
    "names", [np.arange(3), np.array([["a", "b", "c"]]), np.array("a"), np.ones(3, "?")]
)
def test_class_names_are_a_row_of_text(build, names):
    with pytest.raises(ValueError, match=r"set\.npz: class_names must be text \(classes,\); got"):
        build(medmnist(class_names=names))


def test_class_names_may_be_bytes(build):
    names = np.array([name.encode() for name in ("normal", "Rückfall", "ill")])
    assert build(medmnist(class_names=names)).class_names == ("normal", "Rückfall", "ill")
    with pytest.raises(ValueError, match=r"set\.npz: class_names are not UTF-8"):
        build(medmnist(class_names=np.array([b"\xff", b"b", b"c"])))


def test_splits_may_have_labels_of_any_integers(tmp_path):
    arrays = {}
    for split, dtype in (("train", np.int64), ("val", np.uint64), ("test", np.uint8)):
        arrays[f"{split}_images"] = np.zeros((4, 3, 3), np.uint8)
        arrays[f"{split}_labels"] = np.array([7, 9, 9, 7], dtype)
    np.savez(tmp_path / "set.npz", **arrays)
    dataset = build_dataset(DataConfig(path=str(tmp_path / "set.npz"), audit=False))
    assert all(split.labels.tolist() == [0, 1, 1, 0] for split in dataset.splits.values())
    assert dataset.class_names == ("7", "9")


def test_patients_may_be_bytes_of_utf_8(tmp_path):
    patients = [f"p\u00e9{i // 2}" for i in range(40)]
    arrays = {"x": np.zeros((40, 3, 3), np.uint8), "y": np.arange(40) % 2}
    path = tmp_path / "set.npz"
    np.savez(path, **arrays, groups=np.array([patient.encode() for patient in patients]))
    dataset = build_dataset(DataConfig(path=str(path), audit=False))
    assert set().union(*(split.groups for split in dataset.splits.values())) == set(patients)
    np.savez(path, **arrays, groups=np.array([b"\xe9"] * 40))
    with pytest.raises(ValueError, match=r"set\.npz: groups are not UTF-8: save them as text"):
        build_dataset(DataConfig(path=str(path)))
