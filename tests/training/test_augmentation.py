"""Augmentation inside the step, beside the policies that change images while they are read."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from medmamba_jax.data.images.augmentation import MIRRORING, ON_DEVICE, POLICIES, random_crop_box
from medmamba_jax.parallel import DataParallel
from medmamba_jax.training import augmentation
from medmamba_jax.training.augmentation import DEVICE_POLICIES, Draws, Mixing, apply, mix

BATCH, HEIGHT, WIDTH = 8, 48, 64
COUNT = 2000
apply_jitted = jax.jit(apply)


def smooth(channels=3, batch=BATCH, height=HEIGHT, width=WIDTH):
    """Images whose values change by a few levels from pixel to pixel."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (batch, channels, 6, 8), np.uint8)
    large = [
        [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in x]
        for x in small
    ]
    return np.stack([np.stack([np.asarray(plane) for plane in x], axis=-1) for x in large])


IMAGES = smooth()


def numbers(count=COUNT):
    return jax.random.uniform(jax.random.key(0), (count, augmentation._NUMBERS))


def drawn(name, count=COUNT, height=HEIGHT, width=WIDTH):
    draw = jax.jit(DEVICE_POLICIES[name].draw, static_argnums=(1, 2))
    return jax.device_get(draw(numbers(count), height, width))


class Fixed:
    """A generator that draws given numbers, in order."""

    def __init__(self, *values):
        self.values = iter(values)

    def uniform(self, low, high):
        value = next(self.values)
        assert low <= value <= high
        return value

    def random(self):
        return next(self.values)


def assert_like_pillow(actual, expected, cut=0):
    """Compares with Pillow, which rounds down `cut` times, and otherwise rounds to the nearest."""
    difference = np.asarray(actual, int) - expected
    # At the edge of a rotated image, only one of the two may count a pixel as inside.
    assert np.mean(np.abs(difference) > 2) < 1e-3
    assert abs(difference.mean() - cut / 2) < 0.25


class TestPixels:
    """The same draw gives the pixels that Pillow gives."""

    @pytest.mark.parametrize("name", ["light", "light_flip"])
    def test_light(self, name):
        draws = drawn(name, BATCH)
        result = apply_jitted(draws, IMAGES)
        for i, image in enumerate(IMAGES):
            values = [math.degrees(draws.angle[i]), draws.zoom[i], draws.brightness[i]]
            if name == "light_flip":
                values.append(0.4 if draws.mirrored[i] else 0.6)
            transform = POLICIES[name](WIDTH, HEIGHT, Fixed(*values))
            assert_like_pillow(result[i], transform(Image.fromarray(image)), cut=2)
        assert name == "light" or 0 < draws.mirrored.sum() < BATCH

    def test_official(self):
        draws = drawn("official", BATCH)
        result = apply_jitted(draws, IMAGES)
        for i, image in enumerate(IMAGES):
            top, left, height, width = draws.crop[i].tolist()
            crop = Image.fromarray(image).crop((left, top, left + width, top + height))
            expected = crop.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
            if draws.mirrored[i]:
                expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            assert_like_pillow(result[i], expected)
        assert 0 < draws.mirrored.sum() < BATCH

    def test_nothing_from_outside_a_crop_is_seen(self):
        white = np.full((1, 40, 40, 1), 255, np.uint8)
        white[:, 10:30, 5:25] = 7
        crop = jnp.array([[10, 5, 20, 20]])
        assert (np.asarray(apply_jitted(Draws(crop=crop), white)) == 7).all()

    def test_a_rotated_crop(self):
        angle, (top, left, height, width) = 0.2, (6, 10, 36, 30)
        draws = Draws(crop=jnp.array([[top, left, height, width]] * BATCH))
        draws = Draws(crop=draws.crop, angle=jnp.full(BATCH, angle), mirrored=jnp.ones(BATCH, bool))
        # By hand: mirror, scale to the crop's size, rotate, and move to the crop's centre.
        move = np.array([[1, 0, left + width / 2], [0, 1, top + height / 2], [0, 0, 1]])
        cos, sin = math.cos(angle), math.sin(angle)
        rotate = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        scale = np.diag([-width / WIDTH, height / HEIGHT, 1])
        to_centre = np.array([[1, 0, -WIDTH / 2], [0, 1, -HEIGHT / 2], [0, 0, 1]])
        coefficients = (move @ rotate @ scale @ to_centre)[:2].ravel().tolist()
        for image, actual in zip(IMAGES, np.asarray(apply_jitted(draws, IMAGES)), strict=True):
            expected = Image.fromarray(image).transform(
                (WIDTH, HEIGHT), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
            )
            assert_like_pillow(actual, expected, cut=1)

    def test_the_identity_changes_no_bit(self):
        whole = jnp.array([[0, 0, HEIGHT, WIDTH]] * BATCH)
        zeros, ones = jnp.zeros(BATCH), jnp.ones(BATCH)
        noise = np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8)
        draws = Draws(whole, zeros, ones, zeros > 0, ones, ones, jnp.zeros((BATCH, 4), "int32"))
        np.testing.assert_array_equal(apply_jitted(draws, noise), noise)
        np.testing.assert_array_equal(
            apply_jitted(Draws(mirrored=ones > 0), noise), noise[:, :, ::-1]
        )
        unchanged, own_share = DEVICE_POLICIES["none"](jax.random.key(0), noise)
        assert unchanged is noise and own_share is None

    @pytest.mark.parametrize("channels", [1, 5])
    def test_any_number_of_channels(self, channels):
        images = smooth(channels)
        draws = drawn("light", BATCH)
        result = apply_jitted(draws, images)
        by_channel = [apply_jitted(draws, images[..., [c]]) for c in range(channels)]
        np.testing.assert_array_equal(result, np.concatenate(by_channel, -1))

    def test_brightness_contrast_and_erasing_by_hand(self):
        rng = np.random.default_rng(1)
        brightness, contrast = (rng.uniform(0.8, 1.2, BATCH).astype(np.float32) for _ in range(2))
        erased = np.array([[5, 7, 20, 10]] * (BATCH - 1) + [[0, 0, 0, 0]], np.int32)
        draws = Draws(brightness=brightness, contrast=contrast, erased=erased)
        mean = IMAGES.mean((1, 2, 3), dtype=np.float64)[:, None, None, None]
        brightness, contrast = (x[:, None, None, None] for x in (brightness, contrast))
        expected = brightness * (mean + contrast * (IMAGES - mean))
        expected[:-1, 5:25, 7:17] = (brightness * mean)[:-1]
        expected = np.clip(np.round(expected), 0, 255)
        actual = np.asarray(apply_jitted(draws, IMAGES), int)
        assert np.abs(actual - expected).max() <= 1 and np.mean(actual != expected) < 0.02


class TestDraws:
    """The numbers are distributed as those of the policies that work while images are read."""

    @pytest.mark.parametrize("size", [(224, 224), (400, 60), (9, 1000)])
    def test_crops(self, size):
        width, height = size
        ours = drawn("official", COUNT, height, width).crop[:, [1, 0, 3, 2]]
        theirs = [random_crop_box(*size, np.random.default_rng(i)) for i in range(COUNT)]
        ours, theirs = (features(np.array(boxes, float)) for boxes in (ours, theirs))
        for a, b in zip(ours, theirs, strict=True):
            assert scipy.stats.ks_2samp(a, b).pvalue > 1e-4
        if size == (9, 1000):  # no try fits
            assert len(np.unique(np.array(ours), axis=1).T) == 1

    @pytest.mark.parametrize(
        ("name", "field", "low", "high"),
        [
            ("light", "angle", math.radians(-7), math.radians(7)),
            ("light", "zoom", 0.9, 1.1),
            ("light", "brightness", 0.9, 1.1),
            ("strong", "angle", math.radians(-15), math.radians(15)),
            ("strong", "brightness", 0.8, 1.2),
            ("strong", "contrast", 0.8, 1.2),
        ],
    )
    def test_uniform_numbers(self, name, field, low, high):
        values = getattr(drawn(name), field)
        assert scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-4

    @pytest.mark.parametrize("name", [name for name in DEVICE_POLICIES if name != "none"])
    def test_half_of_the_images_are_mirrored_where_any_are(self, name):
        mirrored = drawn(name).mirrored
        assert (mirrored is not None) == (name in MIRRORING)
        if mirrored is not None:
            assert abs(mirrored.sum() - COUNT / 2) < 4 * math.sqrt(COUNT / 4)

    def test_the_numbers_of_an_image_are_independent(self):
        draws = drawn("strong_flip")
        columns = [draws.angle, draws.brightness, draws.contrast, draws.mirrored]
        columns += [draws.crop[:, i] for i in (0, 1)] + [draws.erased[:, 2] > 0]
        correlation = np.corrcoef(np.array(columns, float)) - np.eye(len(columns))
        assert np.abs(correlation).max() < 0.11  # 5 standard deviations

    def test_crops_of_strong_are_moderate(self):
        top, left, height, width = drawn("strong").crop.T
        share = height * width / (HEIGHT * WIDTH)
        assert 0.48 < share.min() < 0.52 and 0.95 < share.max() <= 1
        assert (top >= 0).all() and (top + height <= HEIGHT).all() and (left + width).max() == WIDTH

    def test_erased_boxes(self):
        boxes = drawn("strong", COUNT, 200, 200).erased
        erased = boxes[:, 2] > 0
        assert abs(erased.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / COUNT)
        assert not boxes[~erased].any()
        top, left, height, width = boxes[erased].T
        area, aspect = height * width / 200**2, np.log(width / height)
        assert scipy.stats.kstest(area, "uniform", (0.02, 0.18)).pvalue > 1e-4
        limit = math.log(1 / 0.3)
        assert abs(aspect.mean()) < 0.1 and 0.95 * limit < aspect.max() < 1.05 * limit
        assert top.min() >= 0 and (top + height).max() == (left + width).max() == 200


def features(boxes):
    """Corners, area and shape of boxes (n, 4): left, top, width, height."""
    left, top, width, height = boxes.T
    return left, top, left + width, top + height, width * height, width / height


class TestMixing:
    @pytest.mark.parametrize(
        ("box", "outside"), [((0, 0, 0, 0), 0.7), ((8, 4, 20, 32), 1.0), ((0, 0, 0, 0), 1.0)]
    )
    def test_pixels_and_share_by_hand(self, box, outside):
        result, own_share = jax.jit(mix)(Mixing(jnp.array(box), jnp.float32(outside)), IMAGES)
        own = np.full((HEIGHT, WIDTH, 1), outside)
        top, left, height, width = box
        own[top : top + height, left : left + width] = 0
        for i in range(BATCH):
            expected = own * IMAGES[i] + (1 - own) * IMAGES[i - 1]
            assert np.abs(np.asarray(result[i], float) - expected).max() < 0.6
        assert own_share == pytest.approx(own.mean(), abs=1e-6)

    def test_how_often_and_how_much(self):
        draw = jax.jit(jax.vmap(lambda key: augmentation.draw_mixing(key, 90, 120)))
        box, outside = jax.device_get(draw(jax.random.split(jax.random.key(1), COUNT)))
        is_mixup, is_cutmix = outside < 1, box[:, 2:].all(1)
        assert not (is_mixup & (box != 0).any(1)).any()
        for kind in (is_mixup, is_cutmix):
            # A tiny box or share may be rounded to 0. Such a batch is not mixed.
            assert abs(kind.mean() - 0.25) < 0.02 + 4 * math.sqrt(0.25 * 0.75 / COUNT)
        beta = scipy.stats.beta(0.2, 0.2)
        shares = outside[is_mixup]
        folded = scipy.stats.kstest(shares, lambda s: beta.cdf(s) - beta.cdf(1 - s))
        assert folded.pvalue > 1e-4
        # This draws CutMix boxes in NumPy as its authors do (rand_bbox).
        rng = np.random.default_rng(0)
        lam, y, x = (
            rng.uniform(size=COUNT),
            rng.integers(90, size=COUNT),
            rng.integers(120, size=COUNT),
        )
        height, width = (90 * np.sqrt(1 - lam)).astype(int), (120 * np.sqrt(1 - lam)).astype(int)
        heights = np.clip(y + height // 2, 0, 90) - np.clip(y - height // 2, 0, 90)
        widths = np.clip(x + width // 2, 0, 120) - np.clip(x - width // 2, 0, 120)
        shown = (heights > 0) & (widths > 0)
        for ours, theirs in ((box[is_cutmix, 2], heights), (box[is_cutmix, 3], widths)):
            assert scipy.stats.ks_2samp(ours, theirs[shown]).pvalue > 1e-4

    def test_partners_are_neighbours(self):
        np.testing.assert_array_equal(augmentation.partners(jnp.arange(4)), [3, 0, 1, 2])


class TestBits:
    @pytest.mark.slow
    def test_several_devices_give_the_same_without_gathering_images(self, monkeypatch):
        monkeypatch.undo()  # all devices
        parallel = DataParallel.over_all_devices()
        assert len(parallel.devices) == 8
        images = np.random.default_rng(2).integers(0, 256, (2 * BATCH, 20, 24, 3), np.uint8)
        spread = parallel.put_batch({"image": images})["image"]
        policy = jax.jit(DEVICE_POLICIES["strong_flip"])
        several = policy.lower(jax.random.key(0), spread).compile()
        shares = set()
        for key in map(jax.random.key, range(6)):
            expected, own_share = policy(key, images)
            actual, same_share = several(key, spread)
            np.testing.assert_array_equal(actual, expected)
            assert own_share == same_share
            shares.add(float(own_share))
        assert 1.0 in shares and len(shares) > 2  # not mixed, and mixed
        moved = set(re.findall(r"all-\w+|collective-\w+|reduce-scatter", several.as_text()))
        assert moved == {"collective-permute"}  # each device sends one image

    def test_an_image_does_not_depend_on_the_others(self):
        policy = jax.jit(DEVICE_POLICIES["light_flip"])
        whole, _ = policy(jax.random.key(3), IMAGES)
        part, _ = policy(jax.random.key(3), IMAGES[:5])
        np.testing.assert_array_equal(whole[:5], part)
        other, _ = policy(jax.random.key(4), IMAGES[:5])
        assert (np.asarray(other) != part).any((1, 2, 3)).all()


def test_the_step_has_every_policy():
    assert set(DEVICE_POLICIES) == set(POLICIES) > set(ON_DEVICE)
