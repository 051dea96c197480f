import numpy as np
import pytest

from medmamba_jax.data import Dataset, InMemorySplit


def dataset(class_names, labels):
    split = InMemorySplit(np.zeros((len(labels), 8, 8), np.uint8), labels)
    return Dataset("own", "made by hand", class_names, {"train": split}, synthetic=True)


def test_counts_include_classes_without_images():
    assert dataset(("a", "b", "c"), [2, 0, 2]).counts() == {"train": {"a": 1, "b": 0, "c": 2}}


@pytest.mark.parametrize("class_names", [("a",), ("a", "b", "a")])
def test_class_names_must_be_two_or_more_and_distinct(class_names):
    with pytest.raises(ValueError, match="two or more distinct classes"):
        dataset(class_names, [0])


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_a_label_without_a_class_is_refused(labels):
    with pytest.raises(ValueError, match=r"split 'train' run from .* 3 classes"):
        dataset(("a", "b", "c"), labels)


@pytest.mark.parametrize("labels", [[0, 1, 1], [[0], [1]], [0.0, 1.0]])
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
