import hashlib
import pathlib
import pickle

import numpy as np
import pytest

from medmamba_jax.data import Dataset, LabelledImages


def dataset(class_names, labels):
    split = LabelledImages(np.zeros((len(labels), 8, 8), np.uint8), labels, class_names, name="own")
    return Dataset({"train": split})


def test_counts_include_classes_without_images():
    assert dataset(("a", "b", "c"), [2, 0, 2]).counts() == {"train": {"a": 1, "b": 0, "c": 2}}


def test_splits_of_a_data_set_have_the_same_classes():
    images = np.zeros((2, 8, 8), np.uint8)
    train = LabelledImages(images, [0, 1], ("a", "b"))
    others = [LabelledImages(images, [0, 1], ("b", "a")), LabelledImages(images, [[0, 1], [1, 1]])]
    for val in others:
        with pytest.raises(ValueError, match=r"'val' is .*, but 'train' is multiclass with \('a'"):
            Dataset({"train": train, "val": val})
    with pytest.raises(ValueError, match="needs a split"):
        Dataset({})


def test_rows_keep_all_that_is_known():
    images = np.arange(5, dtype=np.uint8)[:, None, None] + np.zeros((5, 2, 2), np.uint8)
    whole = LabelledImages(
        images,
        [0, 1, 2, 0, 1],
        ("a", "b", "c"),
        names=tuple("vwxyz"),
        groups=[1, 1, 2, 2, 3],
        weights=[1, 2, 3, 4, 5],
        splits=["train", "val", "test", "train", "val"],
        root=pathlib.Path("folder"),
    )
    part = whole.take(np.array([4, 0, 3])).take(np.array([2, 0]))
    assert len(part) == 2 and part.names == ("y", "z")
    assert [int(part.read(row)[0, 0]) for row in range(2)] == [3, 4]
    assert part.labels.tolist() == [0, 1] and part.groups.tolist() == ["2", "3"]
    assert part.weights.tolist() == [4, 5] and part.splits.tolist() == ["train", "val"]
    assert part.describe(1) == "folder/z" and part.label_name(1) == "b"
    assert part.class_names == ("a", "b", "c")
    copy = pickle.loads(pickle.dumps(part))
    assert int(copy.read(1)[0, 0]) == 4 and copy.digest() == part.digest()


def test_names_of_classes_and_images_may_be_left_out():
    images = LabelledImages(np.zeros((3, 8, 8), np.uint8), [0, 2, 0])
    assert images.class_names == ("0", "1", "2") and images.names[1] == "image 1"
    assert LabelledImages([], np.zeros(0, int)).class_names == ("0", "1")
    assert LabelledImages(np.zeros((1, 8, 8)), [[1, 0, 1]]).label_name(0) == "0|2"


@pytest.mark.parametrize("field", ["names", "groups"])
def test_every_image_has_one(field):
    with pytest.raises(ValueError, match=rf"got 3 images but .*{field}"):
        LabelledImages(np.zeros((3, 8, 8), np.uint8), [0, 1, 0], **{field: ["a", "b"]})
    with pytest.raises(ValueError, match="got 2 images but 3 labels"):
        LabelledImages(np.zeros((2, 8, 8), np.uint8), [0, 1, 0])


def test_class_names_must_be_distinct():
    with pytest.raises(ValueError, match="one or more distinct classes"):
        dataset(("a", "b", "a"), [0])


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_a_label_without_a_class_is_refused(labels):
    with pytest.raises(ValueError, match=r"labels of own run from .* 3 classes"):
        dataset(("a", "b", "c"), labels)


@pytest.mark.parametrize("labels", [[0, 1, 1], [[[0]], [[1]]], [0.0, 1.0], ["0", "1"]])
def test_labels_must_be_integers_one_per_image(labels):
    with pytest.raises(ValueError, match="labels"):
        LabelledImages(np.zeros((2, 8, 8), np.uint8), labels)


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
    digests = [LabelledImages(*split).digest() for split in splits]
    assert len(set(digests)) == len(splits)
    assert LabelledImages(list(images), np.array([0, 1, 1], np.int8)).digest() == digests[0]


class TestWeights:
    IMAGES = np.zeros((3, 8, 8), np.uint8)

    def test_they_are_float32_and_taken_with_their_images(self):
        split = LabelledImages(self.IMAGES, [0, 1, 1], weights=[1, 2, 0.5])
        assert split.weights.dtype == np.float32
        assert split.take(np.array([2, 0])).weights.tolist() == [0.5, 1]
        assert LabelledImages(self.IMAGES, [0, 1, 1]).take(np.array([0])).weights is None

    def test_the_digest_sees_them_where_there_are_any(self):
        every = [None, [1, 1, 1], [1, 2, 1], [1, 1, 2]]
        splits = [LabelledImages(self.IMAGES, [0, 1, 1], weights=weights) for weights in every]
        assert len({split.digest() for split in splits}) == 4
        # That of the runs that are there.
        image = hashlib.sha256(b"uint8 (8, 8) " + bytes(64)).digest()
        labels = b"".join(label.to_bytes(8, "little") for label in (0, 1, 1))
        total = hashlib.sha256(b"(3,) " + labels + 3 * image)
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
            LabelledImages(self.IMAGES, [0, 1, 1], weights=weights)

    def test_the_image_is_named(self):
        names = tuple(f"scan_{i}.png" for i in range(3))
        with pytest.raises(ValueError, match=r"weights of .* hold 0 for scan_1\.png"):
            LabelledImages(self.IMAGES, [0, 1, 1], weights=[1, 0, 1], names=names)


class TestMultilabel:
    NAN = float("nan")

    def split(self, labels, class_names=()):
        return LabelledImages(np.zeros((len(labels), 8, 8), np.uint8), labels, class_names)

    @pytest.mark.parametrize(
        "labels",
        [
            [[1, 0], [-1, 1], [1, 1]],
            [[1, 0], [NAN, 1], [1, 1]],
            np.array([[1, 0], [-1, 1], [1, 1]], np.int8),
        ],
    )
    def test_unknown_labels_become_nan(self, labels):
        split = self.split(labels, ("a", "b"))
        assert split.task == "multilabel" and split.labels.dtype == np.float32
        np.testing.assert_array_equal(split.labels, [[1, 0], [np.nan, 1], [1, 1]])
        assert split.counts() == {"a": 2, "b": 2}

    def test_one_class_and_truth_values(self):
        split = self.split(np.array([[True], [False], [True]]), ("ill",))
        assert split.labels.dtype == np.float32
        assert split.counts() == {"ill": 2}

    def test_groups_are_one_an_image(self):
        images, labels = np.zeros((2, 8, 8), np.uint8), [[1, 0], [0, 1]]
        assert LabelledImages(images, labels, groups=["p1", "p2"]).groups.tolist() == ["p1", "p2"]
        with pytest.raises(ValueError, match="groups of shape"):
            LabelledImages(images, labels, groups=labels)

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

    def test_labels_and_classes_have_to_agree(self):
        with pytest.raises(ValueError, match="has 2 numbers an image"):
            self.split([[1, 0, 1]], ("a", "b"))
        with pytest.raises(ValueError, match="one or more distinct classes"):
            self.split([[1, 0]], ("a", "a"))

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
