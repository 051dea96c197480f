"""Random changes to training images: one function per policy, all at the image's own size.

A policy takes a decoded image (mode L or RGB) and a seeded generator, and returns an image of the
same mode. Resizing to the model's input follows, so a crop is cut from full resolution.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance

Policy = Callable[[Image.Image, np.random.Generator], Image.Image]

_CROP_AREA = (0.08, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)
_CROP_TRIES = 10

_ROTATION_DEGREES = 7.0
_ZOOM = (0.9, 1.1)
_BRIGHTNESS = (0.9, 1.1)


def none(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Leaves the image as it is."""
    del rng
    return image


def official(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Random crop to between 8 % and 100 % of the area, then a mirror image half of the time.

    What the authors' public `train.py` does (RandomResizedCrop and RandomHorizontalFlip). A
    mirrored chest has its heart on the wrong side: the policy is for comparison with that code.
    """
    left, top, width, height = random_crop_box(image.width, image.height, rng)
    image = image.crop((left, top, left + width, top + height))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotation within 7 degrees, zoom by 0.9 to 1.1, brightness by 0.9 to 1.1; never mirrored.

    What comes into view from outside the image is black.
    """
    angle = math.radians(rng.uniform(-_ROTATION_DEGREES, _ROTATION_DEGREES))
    zoom = rng.uniform(*_ZOOM)
    brightness = rng.uniform(*_BRIGHTNESS)
    # Pillow maps output to input pixels, so the inverse of the rotation and of the zoom.
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = image.width / 2, image.height / 2
    inverse = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
    image = image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)
    return ImageEnhance.Brightness(image).enhance(brightness)


POLICIES: Mapping[str, Policy] = {"none": none, "official": official, "light": light}


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
