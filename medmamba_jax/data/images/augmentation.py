"""Random changes to training images: one function per policy, all at the image's own size.

A policy draws, for an image of some width and height and from a seeded generator, a transform,
which does the same to each of the image's planes (mode L or RGB). Resizing to the model's input
follows, so a crop is cut from full resolution.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance

Transform = Callable[[Image.Image], Image.Image]
Policy = Callable[[int, int, np.random.Generator], Transform]

_CROP_AREA = (0.08, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)
_CROP_TRIES = 10

_ROTATION_DEGREES = 7.0
_ZOOM = (0.9, 1.1)
_BRIGHTNESS = (0.9, 1.1)
_RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))


def unchanged(image: Image.Image) -> Image.Image:
    """The transform that leaves an image as it is."""
    return image


def none(width: int, height: int, rng: np.random.Generator) -> Transform:
    """Leaves the image as it is."""
    del width, height, rng
    return unchanged


def official(width: int, height: int, rng: np.random.Generator) -> Transform:
    """Random crop to between 8 % and 100 % of the area, then a mirror image half of the time.

    What the authors' public `train.py` does (RandomResizedCrop and RandomHorizontalFlip). A
    mirrored chest has its heart on the wrong side: the policy is for comparison with that code.
    """
    left, top, crop_width, crop_height = random_crop_box(width, height, rng)
    mirrored = rng.random() < 0.5

    def transform(image: Image.Image) -> Image.Image:
        image = image.crop((left, top, left + crop_width, top + crop_height))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    return transform


def light(width: int, height: int, rng: np.random.Generator) -> Transform:
    """Rotation within 7 degrees, zoom by 0.9 to 1.1, brightness by 0.9 to 1.1; never mirrored.

    What comes into view from outside the image is black.
    """
    angle = math.radians(rng.uniform(-_ROTATION_DEGREES, _ROTATION_DEGREES))
    zoom = rng.uniform(*_ZOOM)
    brightness = rng.uniform(*_BRIGHTNESS)
    # Pillow maps output to input pixels, so the inverse of the rotation and of the zoom.
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = width / 2, height / 2
    inverse = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
    # As a table of the 256 values: `enhance` on the image itself would keep all other threads
    # waiting for the interpreter's lock.
    table = list(ImageEnhance.Brightness(_RAMP).enhance(brightness).tobytes())

    def transform(image: Image.Image) -> Image.Image:
        image = image.transform(
            image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
        )
        return image.point(table * len(image.getbands()))

    return transform


def light_flip(width: int, height: int, rng: np.random.Generator) -> Transform:
    """`light`, then a mirror image half of the time, for organs that look alike from both sides."""
    lightly = light(width, height, rng)
    mirrored = rng.random() < 0.5

    def transform(image: Image.Image) -> Image.Image:
        image = lightly(image)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    return transform


POLICIES: Mapping[str, Policy] = {
    "none": none,
    "official": official,
    "light": light,
    "light_flip": light_flip,
}


def random_crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws a crop by the algorithm of torchvision's RandomResizedCrop.

    Ten tries at an area of 8 % to 100 % and an aspect ratio of 3/4 to 4/3 (uniform in its
    logarithm); if none fits, the largest centred crop whose aspect ratio is allowed.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        rng: the source of randomness.

    Returns:
        left, top, width, height of the crop, in pixels.
    """
    log_aspect = np.log(_CROP_ASPECT)
    for _ in range(_CROP_TRIES):
        area = width * height * rng.uniform(*_CROP_AREA)
        aspect = math.exp(rng.uniform(*log_aspect))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return left, top, crop_width, crop_height
    crop_width = min(width, max(1, round(height * _CROP_ASPECT[1])))
    crop_height = min(height, max(1, round(width / _CROP_ASPECT[0])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height
