"""The phantoms must be learnable from local structure and from nothing simpler."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medmamba_jax.data import DataConfig, build_dataset
from medmamba_jax.data.sources.phantom import draw


@pytest.fixture(scope="module")
def dataset():
    return build_dataset(DataConfig(name="phantom"))


def arrays(dataset, split):
    split = dataset.splits[split]
    return np.stack([split.read(i) for i in range(len(split))]), split.labels


def resized(images, size):
    filter = Image.Resampling.BILINEAR
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), filter)) for image in images]
    ).astype(np.float32)


def accuracy(dataset, features, regularization=(1.0,)):
    """Test accuracy of the best logistic regression; the best on the test set, to be strict."""
    (train, train_labels), (test, test_labels) = (arrays(dataset, s) for s in ("train", "test"))
    train, test = features(train), features(test)
    return max(
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200))
        .fit(train, train_labels)
        .score(test, test_labels)
        for c in regularization
    )


def band_energies(images):
    """How much structure of three sizes the images have, on average and where it is greatest."""
    images = resized(images, 64)
    images /= images.std((1, 2), keepdims=True)
    features = []
    for fine, coarse in ((0.6, 1.2), (1.2, 2.2), (2.2, 4.0)):
        band = ndimage.gaussian_filter(images, (0, fine, fine))
        band -= ndimage.gaussian_filter(images, (0, coarse, coarse))
        energy = ndimage.uniform_filter(band**2, (0, 12, 12))
        features += [energy.max((1, 2)), energy.mean((1, 2)), np.median(energy, (1, 2))]
        features += [band.max((1, 2)), np.percentile(band, 98, (1, 2))]
    return np.log(np.stack(features, 1))


def test_splits_are_balanced_and_called_synthetic(dataset):
    assert dataset.synthetic and "synthetic" in dataset.description
    assert dataset.counts() == {
        split: {"clear": n, "reticular": n, "consolidation": n}
        for split, n in (("train", 180), ("val", 30), ("test", 90))
    }
    image = dataset.splits["train"].read(0)
    assert image.shape == (96, 96) and image.dtype == np.uint8


def test_the_seed_decides_every_pixel():
    first, labels = draw(30, seed=5)
    np.testing.assert_array_equal(first, draw(30, seed=5)[0])
    assert np.all(np.any(first != draw(30, seed=6)[0], (1, 2)))
    np.testing.assert_array_equal(labels, np.tile([0, 1, 2], 10))


def test_no_image_is_overexposed(dataset):
    images, _ = arrays(dataset, "train")
    assert np.mean((images == 0) | (images == 255)) < 0.001


@pytest.mark.parametrize("size", [32, pytest.param(64, marks=pytest.mark.nightly)])
def test_a_linear_model_of_the_pixels_fails(dataset, size):
    probe = accuracy(
        dataset,
        lambda images: resized(images, size).reshape(len(images), -1),
        regularization=(1e-4, 1e-3, 1e-2),
    )
    assert probe < 0.6


@pytest.mark.parametrize("statistic", [np.mean, np.std])
def test_brightness_and_contrast_tell_nothing(dataset, statistic):
    assert accuracy(dataset, lambda images: statistic(images, (1, 2))[:, None]) < 0.45


def test_local_structure_tells_the_class(dataset):
    assert accuracy(dataset, band_energies, regularization=(1.0, 10.0)) > 0.85
