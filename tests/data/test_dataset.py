import hashlib

import numpy as np
import pytest

from medmamba_jax.data import Dataset, InMemorySplit


def dataset(class_names, labels):
    split = InMemorySplit(np.zeros((len(labels), 8, 8), np.uint8), labels)
    return Dataset("own", "made by hand", class_names, {"train": split}, synthetic=True)


def test_counts_include_classes_without_images():
    assert dataset(("a", "b", "c"), [2, 0, 2]).counts() == {"train": {"a": 1, "b": 0, "c": 2}}


def test_unknown_task():
    with pytest.raises(ValueError, match=r"task must be one of .*'multilabel'.*got 'regression'"):
        Dataset("own", "", ("a", "b"), {}, synthetic=True, task="regression")


@pytest.mark.parametrize("class_names", [("a",), ("a", "b", "a")])
def test_class_names_must_be_two_or_more_and_distinct(class_names):
    with pytest.raises(ValueError, match="two or more distinct classes"):
        dataset(class_names, [0])


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_a_label_without_a_class_is_refused(labels):
    with pytest.raises(ValueError, match=r"split 'train' run from .* 3 classes"):
        dataset(("a", "b", "c"), labels)


@pytest.mark.parametrize("labels", [[0, 1, 1], [[[0]], [[1]]], [0.0, 1.0], ["0", "1"]])
def test_labels_must_be_integers_one_per_image(labels):
    with pytest.raises(ValueError, match="labels"):
        InMemorySplit(np.zeros((2, 8, 8), np.uint8), labels)


def test_digests_tell_images_labels_and_order_apart():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    changed = images.copy()
    changed[2, 7, 7] ^= 1
    splits = [
        (images, [0, 1, 1]),
        (images, [0, 0, 1]),
        (images[[0, 2, 1]], [0, 1, 1]),
        (images[:2], [0, 1]),
        (changed, [0, 1, 1]),
        (images.reshape(3, 4, 16), [0, 1, 1]),
        ([b"a", b"bc", b"d"], [0, 1, 1]),
        ([b"ab", b"c", b"d"], [0, 1, 1]),
    ]
    digests = [InMemorySplit(*split).digest() for split in splits]
    assert len(set(digests)) == len(splits)
    assert InMemorySplit(list(images), np.array([0, 1, 1], np.int8)).digest() == digests[0]


class TestWeights:
    IMAGES = np.zeros((3, 8, 8), np.uint8)

    def test_they_are_float32_and_taken_with_their_images(self):
        split = InMemorySplit(self.IMAGES, [0, 1, 1], weights=[1, 2, 0.5])
        assert split.weights.dtype == np.float32
        assert split.take(np.array([2, 0])).weights.tolist() == [0.5, 1]
        assert InMemorySplit(self.IMAGES, [0, 1, 1]).take(np.array([0])).weights is None

    def test_the_digest_sees_them_where_there_are_any(self):
        every = [None, [1, 1, 1], [1, 2, 1], [1, 1, 2]]
        splits = [InMemorySplit(self.IMAGES, [0, 1, 1], weights=weights) for weights in every]
        assert len({split.digest() for split in splits}) == 4
        # That of a run of an earlier version.
        total = hashlib.sha256()
        for label in (0, 1, 1):
            image = hashlib.sha256(b"uint8 (8, 8) " + bytes(64)).digest()
            total.update(label.to_bytes(8, "little") + image)
        assert splits[0].digest() == total.hexdigest()

    @pytest.mark.parametrize(
        ("weights", "problem"),
        [
            ([1, 0, 1], r"hold 0 for image 1; give positive"),
            ([1, 1, -2], r"hold -2 for image 2"),
            ([np.nan, 1, 1], r"hold nan for image 0"),
            ([1, np.inf, 1], r"hold inf for image 1"),
            ([1, 1e-39, 1], r"hold 1e-39 for image 1"),
            ([1, 1], r"shape \(2,\).*for each of the 3 images"),
            (["1", "1", "1"], "dtype <U1"),
        ],
    )
    def test_bad_ones_are_refused(self, weights, problem):
        with pytest.raises(ValueError, match=f"weights .*{problem}"):
            InMemorySplit(self.IMAGES, [0, 1, 1], weights=weights)

    def test_another_source_is_checked_and_its_image_named(self):
        split = InMemorySplit(self.IMAGES, [0, 1, 1])
        split.weights = np.array([1, 0, 1], np.float32)
        split.describe = "scan_{}.png".format
        with pytest.raises(ValueError, match=r"of split 'train' hold 0 for scan_1\.png"):
            Dataset("own", "by hand", ("a", "b"), {"train": split}, synthetic=True)


class TestMultilabel:
    NAN = float("nan")

    def split(self, labels):
        return InMemorySplit(np.zeros((len(labels), 8, 8), np.uint8), labels)

    def dataset(self, split, class_names=("a", "b"), task="multilabel"):
        return Dataset("own", "by hand", class_names, {"train": split}, synthetic=True, task=task)

    @pytest.mark.parametrize(
        "labels",
        [
            [[1, 0], [-1, 1], [1, 1]],
            [[1, 0], [NAN, 1], [1, 1]],
            np.array([[1, 0], [-1, 1], [1, 1]], np.int8),
        ],
    )
    def test_unknown_labels_become_nan(self, labels):
        split = self.split(labels)
        assert split.labels.dtype == np.float32
        np.testing.assert_array_equal(split.labels, [[1, 0], [np.nan, 1], [1, 1]])
        np.testing.assert_array_equal(split[1]["label"], split.labels[1])
        assert self.dataset(split).counts() == {"train": {"a": 2, "b": 2}}

    def test_one_class_and_truth_values(self):
        split = self.split(np.array([[True], [False], [True]]))
        assert split.labels.dtype == np.float32
        assert self.dataset(split, ("ill",)).counts() == {"train": {"ill": 2}}

    def test_groups_are_one_an_image(self):
        images, labels = np.zeros((2, 8, 8), np.uint8), [[1, 0], [0, 1]]
        assert InMemorySplit(images, labels, groups=["p1", "p2"]).groups.tolist() == ["p1", "p2"]
        with pytest.raises(ValueError, match="groups of shape"):
            InMemorySplit(images, labels, groups=labels)

    @pytest.mark.parametrize(
        ("labels", "problem"),
        [
            ([[1, 0], [2, 0]], "hold 2 for class 0 of image 1; write 1 where"),
            ([[1, 0], [0, 0.5]], "hold 0.5 for class 1 of image 1"),
            ([[1, 0], [0, -2]], "hold -2 for class 1"),
            ([[1, 0], [0]], "equally many entries"),
            ([0.0, NAN], "label of image 1 is NaN.*leave out"),
            ([["1", "0"], ["0", "1"]], "a table .* of 1, 0 and NaN; got shape"),
        ],
    )
    def test_bad_labels_are_refused(self, labels, problem):
        with pytest.raises(ValueError, match=problem):
            self.split(labels)

    def test_labels_and_task_have_to_agree(self):
        with pytest.raises(ValueError, match=r"one integer an image: .* task='multilabel'"):
            self.dataset(self.split([[1, 0]]), task="multiclass")
        with pytest.raises(ValueError, match="has 2 numbers an image"):
            self.dataset(self.split([1, 0]))
        with pytest.raises(ValueError, match="has 2 numbers an image"):
            self.dataset(self.split([[1, 0, 1]]))
        with pytest.raises(ValueError, match="one or more distinct classes"):
            self.dataset(self.split([1, 0]), class_names=())

    def test_another_source_is_checked_and_its_image_named(self):
        split = self.split([[1, 0], [0, 1]])
        split.labels[1, 0] = -1
        split.describe = "scan_{}.png".format
        with pytest.raises(ValueError, match=r"'train' hold -1 for class 0 of scan_1\.png"):
            self.dataset(split)

    def test_digests_see_every_label_and_know_one_nan(self):
        base = [[1, 0], [self.NAN, 1]]
        other = [
            [[1, 0], [0, 1]],
            [[1, 0], [1, 1]],
            [[1, 0], [self.NAN, 0]],
            [[0, 1], [self.NAN, 1]],
        ]
        digests = [self.split(labels).digest() for labels in (base, *other)]
        assert len(set(digests)) == 5
        assert self.split([[1, -0.0], [-self.NAN, 1]]).digest() == digests[0]
        # A row of eight bytes is no integer.
        ones = self.split([[1, 0, 0, 0, 0, 0, 0, 0]])
        assert ones.digest() != self.split([1]).digest()
