import numpy as np
import pytest
from PIL import Image, ImageEnhance

from medmamba_jax.data.images.augmentation import (
    MIRRORING,
    ON_DEVICE,
    POLICIES,
    changes_when_read,
    random_crop_box,
)


def generator(seed=0):
    return np.random.default_rng(seed)


def coordinates(height, width):
    """An image whose red and green channels are the row and the column of each pixel."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([y, x, np.zeros_like(x)], axis=-1))


def augmented(policy, image, seed=0):
    return POLICIES[policy](image.width, image.height, generator(seed))(image)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_generator_decides_everything(policy):
    image = coordinates(100, 80)
    first = augmented(policy, image, 3)
    assert first == augmented(policy, image, 3)
    assert first.mode == image.mode
    if changes_when_read(policy):
        assert first != augmented(policy, image, 4)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_transform_does_the_same_to_every_plane(policy):
    image = coordinates(100, 80)
    transform = POLICIES[policy](80, 100, generator(3))
    planes = [transform(plane) for plane in image.split()]
    assert Image.merge("RGB", planes) == transform(image)


@pytest.mark.parametrize("policy", ["none", *ON_DEVICE])
def test_policies_that_change_nothing_here(policy):
    image = coordinates(30, 40)
    assert augmented(policy, image) == image and not changes_when_read(policy)


def test_policies_that_mirror_have_a_row():
    assert set(MIRRORING) <= set(POLICIES) and set(ON_DEVICE) <= set(POLICIES)
    assert [name for name in POLICIES if name.endswith("_flip")] == list(MIRRORING[1:])


class TestOfficial:
    def test_every_result_is_a_crop_and_half_are_mirrored(self):
        mirrored = 0
        for seed in range(400):
            crop = np.asarray(augmented("official", coordinates(90, 120), seed), int)
            rows, columns = crop[:, 0, 0], crop[0, :, 1]
            np.testing.assert_array_equal(np.diff(rows), 1)
            step = -1 if columns[0] > columns[-1] else 1
            np.testing.assert_array_equal(np.diff(columns), step)
            mirrored += step == -1
        assert 160 < mirrored < 240  # 4 standard deviations of a fair coin

    def test_boxes_have_the_stated_area_and_aspect(self):
        boxes = np.array([random_crop_box(300, 300, generator(seed)) for seed in range(2000)])
        left, top, width, height = boxes.T
        assert left.min() >= 0 and (left + width).max() == 300
        assert top.min() >= 0 and (top + height).max() == 300
        area = width * height / 300**2
        aspect = width / height
        assert 0.075 < area.min() < 0.1 and 0.95 < area.max() <= 1
        assert 0.74 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.35
        # An area a in 0.08..1 fits the square with probability p = min(1, ln(1/a) / ln(4/3)), so
        # accepted areas have the mean (int a p da) / (int p da) = 0.377 / 0.789.
        assert area.mean() == pytest.approx(0.4778, abs=0.02)
        assert np.log(aspect).mean() == pytest.approx(0, abs=0.02)
        # A crop lies anywhere in the room it has.
        room = width < 250
        assert np.mean(left[room] / (300 - width[room])) == pytest.approx(0.5, abs=0.03)

    @pytest.mark.parametrize(
        ("size", "box"),
        [((1000, 9), (494, 0, 12, 9)), ((9, 1000), (0, 494, 9, 12)), ((1, 1), (0, 0, 1, 1))],
    )
    def test_the_fallback_is_the_largest_centred_crop(self, size, box):
        assert random_crop_box(*size, _AlwaysTheLargest()) == box


class _AlwaysTheLargest:
    """Draws the whole area, which a strip of an image never has in an allowed shape."""

    def uniform(self, low, high):
        return high

    def integers(self, high):
        return 0


class TestLight:
    @staticmethod
    def settings(seed):
        """Angle in degrees, zoom and brightness, measured from what became of two dots."""
        size = 201
        dots = np.zeros((size, size), np.float32)
        y, x = np.mgrid[:size, :size] - size // 2
        for center in (-60, 60):
            dots += 150 * np.exp(-(((x - center) ** 2 + y**2) / (2 * 5.0**2)))
        result = augmented("light", Image.fromarray(dots.astype(np.uint8)), seed)
        result = np.asarray(result, float)
        right = result * (x > 0)
        cx, cy = (right * x).sum() / right.sum(), (right * y).sum() / right.sum()
        zoom = np.hypot(cx, cy) / 60
        return np.degrees(np.arctan2(cy, cx)), zoom, result.max() / 149.5

    def test_rotation_zoom_and_brightness_fill_their_ranges(self):
        settings = np.array([self.settings(seed) for seed in range(60)])
        for measured, center, half_range, tolerance in zip(
            settings.T, (0, 1, 1), (7, 0.1, 0.1), (0.8, 0.015, 0.02), strict=True
        ):
            assert measured.min() == pytest.approx(center - half_range, abs=tolerance)
            assert measured.max() == pytest.approx(center + half_range, abs=tolerance)
        # Independent draws: an accidental common factor would tie them together.
        assert np.abs(np.corrcoef(settings.T) - np.eye(3)).max() < 0.5

    def test_brightness_is_what_pillow_does(self):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))
        for factor in (0.9, 1.0, 1.1):
            same = _Fixed((0.0, 1.0, factor))
            result = POLICIES["light"](9, 9, same)(image)
            assert result == ImageEnhance.Brightness(image).enhance(factor)

    def test_it_is_never_mirrored(self):
        half = np.zeros((64, 64), np.uint8)
        half[:, 40:] = 200
        for seed in range(30):
            result = np.asarray(augmented("light", Image.fromarray(half), seed), int)
            assert result[32, 8] < 20 and result[32, 56] > 150


class _Fixed:
    """Draws given numbers, in order."""

    def __init__(self, values):
        self._values = iter(values)

    def uniform(self, low, high):
        return next(self._values)


def test_light_flip_is_light_or_its_mirror_image_each_half_of_the_time():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8))
    mirrored = 0
    for seed in range(200):
        plain = np.asarray(augmented("light", image, seed))
        result = np.asarray(augmented("light_flip", image, seed))
        mirrored += np.array_equal(result, plain[:, ::-1])
        assert np.array_equal(result, plain) or np.array_equal(result, plain[:, ::-1])
    assert 70 < mirrored < 130  # 100 expected, 7 its standard deviation
