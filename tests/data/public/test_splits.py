"""The sizes of the paper's splits, from the published counts."""

import numpy as np
import pytest

from medmamba_jax.data import LabelledImages
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.public.stored import split_rows

COUNTED = [name for name, one in CATALOGUE.items() if None not in one.class_counts.values()]


def labelled(public_set, labels):
    """The images of a set whose publisher gives neither patients nor a split."""
    return LabelledImages(
        np.zeros((len(labels), 1, 1), np.uint8),
        labels,
        public_set.class_names,
        splits=np.full(len(labels), ""),
    )


@pytest.mark.parametrize("name", COUNTED)
def test_the_published_set_is_split_as_the_paper_says(name):
    public_set = CATALOGUE[name]
    counts = np.array(list(public_set.class_counts.values()))
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    images = labelled(public_set, labels)
    rows = split_rows(public_set, "paper", images, seed=0)
    assert {split: len(indices) for split, indices in rows.items()} == public_set.split_sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(list(rows.values()))), range(len(labels)))
    for split, indices in rows.items():
        expected = counts * public_set.split_sizes[split] / public_set.num_images
        np.testing.assert_allclose(np.bincount(labels[indices]), expected, atol=1.01)
    again, other = (split_rows(public_set, "paper", images, seed) for seed in (0, 1))
    np.testing.assert_array_equal(rows["test"], again["test"])
    assert not np.array_equal(rows["test"], other["test"])


def test_kvasir_is_split_evenly():
    """301, 49 and 150 of each class, as is reported."""
    labels = np.repeat(np.arange(8), 500)
    images = labelled(CATALOGUE["kvasir"], labels)
    rows = split_rows(CATALOGUE["kvasir"], "paper", images, seed=0)
    per_class = {split: set(np.bincount(labels[indices])) for split, indices in rows.items()}
    assert per_class == {"train": {301}, "val": {49}, "test": {150}}
