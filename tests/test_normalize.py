"""Normalisation against NumPy in double precision, and against torchvision."""

import functools

import jax
import numpy as np
import pytest

from medmamba_jax.data import Preprocessing
from medmamba_jax.predictor import normalize


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [
        (1, (0.5,), (0.25,)),
        (3, (0.5,), (0.5,)),
        (3, (0.485, 0.456, 0.406), (0.2, 0.3, 0.4)),
        (5, (0.1,), (0.3,)),
    ],
)
def test_against_numpy_in_double_precision(channels, mean, std):
    images = noise(2, 32, 32, channels)
    preprocessing = Preprocessing((32, 32), channels, "bilinear", mean, std)
    normalized = jax.jit(functools.partial(normalize, preprocessing=preprocessing))(images)
    assert normalized.dtype == np.float32
    expected = (images / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalized, expected, rtol=1e-5, atol=1e-6)


def test_against_torchvision():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    functional = pytest.importorskip(
        "torchvision.transforms.v2.functional",
        reason="torchvision is not installed: pip install torchvision",
    )
    images = noise(1, 90, 120, 3)
    preprocessing = Preprocessing((90, 120), 3, "bilinear", (0.485, 0.456, 0.406), (0.2, 0.3, 0.25))
    expected = functional.normalize(
        functional.to_dtype(torch.from_numpy(images).permute(0, 3, 1, 2), torch.float32, True),
        list(preprocessing.mean),
        list(preprocessing.std),
    )
    normalized = normalize(images, preprocessing)
    np.testing.assert_allclose(normalized, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
