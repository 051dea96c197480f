import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax.data import DataConfig, build_dataset


def as_dataset(data, config):
    return build_dataset(config, data)


class Numbers:
    """Image i is filled with i."""

    class_names = ("even", "odd")

    def __init__(self, first=0, count=40):
        self.first, self.count = first, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        value = self.first + range(self.count)[index]
        return {"image": np.full((8, 8), value, np.uint8), "label": value % 2}


class Grouped(Numbers):
    @property
    def groups(self):
        return [i // 4 for i in range(self.count)]


def test_a_data_set_is_returned_as_it_is():
    split = mm.LabelledImages(np.zeros((2, 8, 8), np.uint8), [0, 1])
    dataset = mm.Dataset(dict.fromkeys(("train", "val", "test"), split))
    assert as_dataset(dataset, DataConfig()) is dataset


def test_an_object_is_split_by_the_configuration():
    dataset = as_dataset(Numbers(), DataConfig(split_seed=2))
    assert dataset.class_names == ("even", "odd") and not dataset.synthetic
    assert dataset.counts() == {
        "train": {"even": 12, "odd": 12},
        "val": {"even": 2, "odd": 2},
        "test": {"even": 6, "odd": 6},
    }
    seen = []
    for split in dataset.splits.values():
        for i in range(len(split)):
            seen.append(int(split.read(i)[0, 0]))
            assert split.labels[i] == seen[-1] % 2
            assert split.describe(i) == f"data[{seen[-1]}]"
    assert sorted(seen) == list(range(40))
    assert (
        dataset.splits["train"].digest()
        != as_dataset(Numbers(first=40), DataConfig(split_seed=2)).splits["train"].digest()
    )


def test_groups_of_an_object_stay_together():
    dataset = as_dataset(Grouped(), DataConfig(fold="2/5"))
    groups = [set(split.groups) for split in dataset.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10


def test_weights_of_an_object_follow_its_images():
    class Weighted(Numbers):
        @property
        def weights(self):
            return [self.first + i + 1 for i in range(self.count)]

    whole = as_dataset(Weighted(), DataConfig())
    parts = as_dataset({"train": Weighted(0, 30), "test": Weighted(100, 10)}, DataConfig())
    for split in (*whole.splits.values(), *parts.splits.values()):
        assert split.weights.dtype == np.float32
        for i in range(len(split)):
            assert split.weights[i] == int(split.read(i)[0, 0]) + 1
    assert as_dataset(Numbers(), DataConfig()).splits["train"].weights is None


@pytest.mark.parametrize("val", [True, False])
def test_a_dictionary_of_objects_is_the_splits(val):
    data = {"test": Numbers(100, 10), "train": Numbers(0, 30)}
    if val:
        data["val"] = Numbers(50, 6)
    dataset = as_dataset(data, DataConfig())
    assert [len(split) for split in dataset.splits.values()] == (
        [30, 6, 10] if val else [26, 4, 10]
    )
    assert dataset.splits["test"].read(3)[0, 0] == 103
    assert dataset.splits["test"].describe(3) == "data['test'][3]"


def test_labels_may_be_one_for_each_class():
    class Many(Numbers):
        class_names = ("even", "odd", "large")

        def __getitem__(self, index):
            example = super().__getitem__(index)
            return {**example, "label": [index % 2 == 0, index % 2, np.nan if index < 4 else 1.0]}

    dataset = as_dataset(Many(), DataConfig())
    assert dataset.task == "multilabel"
    assert dataset.splits["train"].labels[0].dtype == np.float32
    known = sum(np.isfinite(split.labels).sum() for split in dataset.splits.values())
    assert known == 3 * 40 - 4
