"""Resizing, cropping and mirroring against torchvision, which the official code uses."""

import math

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import Preprocessing
from medmamba_jax.data.images.augmentation import POLICIES, random_crop_box
from medmamba_jax.predictor import normalize

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
pytest.importorskip("torchvision", reason="torchvision is not installed: pip install torchvision")

from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional  # noqa: E402


def image(height=90, width=120, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def preprocessing(size=(48, 64), resize_filter="bilinear", channels=3):
    return Preprocessing(size, channels, resize_filter, (0.485, 0.456, 0.406), (0.2, 0.3, 0.25))


FILTERS = {
    "bilinear": functional.InterpolationMode.BILINEAR,
    "bicubic": functional.InterpolationMode.BICUBIC,
    "lanczos": functional.InterpolationMode.LANCZOS,
    "nearest": functional.InterpolationMode.NEAREST,
}


class TestResize:
    @pytest.mark.parametrize("size", [(48, 64), (200, 150)])
    @pytest.mark.parametrize("name", FILTERS)
    def test_as_torchvision_resizes_pillow_images(self, name, size):
        expected = functional.resize(Image.fromarray(image()), size, FILTERS[name])
        resized = preprocessing(size, name).resize(image())
        np.testing.assert_array_equal(resized, np.asarray(expected))

    def test_as_torchvision_resizes_tensors_of_any_channels(self):
        pixels = image(channels=5)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).float()
        expected = functional.resize(tensor, (48, 64), FILTERS["bilinear"], antialias=True)
        resized = Preprocessing((48, 64), 5, "bilinear", (0.5,), (0.5,)).resize(pixels)
        # Pillow rounds after each of the two directions.
        np.testing.assert_allclose(resized, expected.permute(1, 2, 0), atol=1.01)


class TestRandomResizedCrop:
    def test_the_same_box_gives_the_same_pixels(self):
        generator = np.random.default_rng(3)
        for seed in range(20):
            policy = POLICIES["official"](120, 90, np.random.default_rng(seed))
            resized = preprocessing().resize(image(), policy)
            generator = np.random.default_rng(seed)
            left, top, width, height = random_crop_box(120, 90, generator)
            expected = functional.resized_crop(
                Image.fromarray(image()), top, left, height, width, (48, 64), FILTERS["bilinear"]
            )
            if generator.random() < 0.5:
                expected = functional.horizontal_flip(expected)
            np.testing.assert_array_equal(resized, np.asarray(expected))

    @pytest.mark.parametrize("size", [(120, 90), (300, 300), (400, 60)])
    def test_boxes_are_distributed_alike(self, size):
        width, height = size
        count = 3000
        ours = np.array(
            [random_crop_box(width, height, np.random.default_rng(i)) for i in range(count)]
        )
        torch.manual_seed(0)
        blank = torch.zeros(1, height, width)
        crop = v2.RandomResizedCrop(10)
        theirs = []
        for _ in range(count):
            box = crop.make_params([blank])
            theirs.append((box["left"], box["top"], box["width"], box["height"]))
        ours, theirs = (_features(np.array(boxes, float), size) for boxes in (ours, theirs))
        # Two-sample Kolmogorov-Smirnov: one in 10,000 fair comparisons exceeds this.
        limit = math.sqrt(-math.log(1e-4 / 2) / count)
        for a, b in zip(ours, theirs, strict=True):
            points = np.concatenate([a, b])
            distance = np.abs(
                np.searchsorted(np.sort(a), points, "right")
                - np.searchsorted(np.sort(b), points, "right")
            ).max()
            assert distance / count < limit


def _features(boxes, size):
    left, top, width, height = boxes.T
    return left, top, width * height, np.log(width / height), left + width, top + height


def test_everything_that_the_official_code_does_before_the_model():
    """Resize, ToTensor and Normalize(0.5, 0.5), as its evaluation does."""
    official = v2.Compose(
        [
            v2.Resize((224, 224)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    step = Preprocessing((224, 224), 3, "bilinear", (0.5,), (0.5,))
    ours = np.asarray(normalize(step.resize(image())[None], step))
    expected = official(Image.fromarray(image())).permute(1, 2, 0)
    np.testing.assert_allclose(ours[0], expected, rtol=1e-5, atol=1e-6)
