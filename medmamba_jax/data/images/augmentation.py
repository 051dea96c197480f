"""Augmentation policies: random changes to training images.

A policy is a function (width, height, generator) -> transform. It draws all random numbers for one
image. The transform then changes each plane of the image (a Pillow image of mode L or RGB) in the
same way, at the image's own size. The image is resized to the model's input afterwards, so a crop
is cut from the full resolution.

`POLICIES` is the only list of policies; the docstring of a policy describes it. To add one, assign
a function to a new name in it. The policies in `ON_DEVICE` change nothing here: the training step
applies them to whole batches, see `medmamba_jax.training.augmentation`.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

Transform = Callable[[Image.Image], Image.Image]
Policy = Callable[[int, int, np.random.Generator], Transform]

CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10

ROTATION_DEGREES = 7.0
ZOOM = (0.9, 1.1)
BRIGHTNESS = (0.9, 1.1)
_RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))


def unchanged(image: Image.Image) -> Image.Image:
    """Returns the image unchanged; the policy `none` returns this transform."""
    return image


def none(width: int, height: int, rng: np.random.Generator) -> Transform:
    """Leaves the image as it is."""
    del width, height, rng
    return unchanged


def official(width: int, height: int, rng: np.random.Generator) -> Transform:
    """Random crop to between 8 % and 100 % of the area, then a mirror image half of the time.

    The authors' public `train.py` does the same (RandomResizedCrop and RandomHorizontalFlip). Use
    this policy only to compare with that code: a mirrored chest has its heart on the wrong side.
    """
    left, top, crop_width, crop_height = random_crop_box(width, height, rng)
    box = (left, top, left + crop_width, top + crop_height)
    return _mirrored_at_random(lambda image: image.crop(box), rng)


def light(width: int, height: int, rng: np.random.Generator) -> Transform:
    """Rotation within 7 degrees, zoom by 0.9 to 1.1, brightness by 0.9 to 1.1; never mirrored.

    Pixels from outside the image are black.
    """
    angle = math.radians(rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES))
    zoom = rng.uniform(*ZOOM)
    brightness = rng.uniform(*BRIGHTNESS)
    # Pillow maps output pixels to input pixels, so it needs the inverse of the rotation and zoom.
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = width / 2, height / 2
    inverse = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
    # A table of the 256 values replaces `enhance` on the image. `enhance` would hold the
    # interpreter's lock, and all other threads would wait.
    table = list(ImageEnhance.Brightness(_RAMP).enhance(brightness).tobytes())

    def transform(image: Image.Image) -> Image.Image:
        image = image.transform(
            image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
        )
        return image.point(table * len(image.getbands()))

    return transform


def light_flip(width: int, height: int, rng: np.random.Generator) -> Transform:
    """`light`, then a mirror image half of the time.

    Use it for organs that look the same when they are mirrored.
    """
    return _mirrored_at_random(light(width, height, rng), rng)


def strong(width: int, height: int, rng: np.random.Generator) -> Transform:
    """Random crop to between 50 % and 100 % of the area, rotation within 15 degrees, brightness
    and contrast by 0.8 to 1.2, and a uniform box in a quarter of the images (random erasing). Then
    a quarter of the batches is mixed by mixup, and a quarter by CutMix. Never mirrored.

    The training step applies it to the resized images, see
    `medmamba_jax.training.augmentation.draw_strong` and `draw_mixing`. Here the image stays as it
    is.
    """
    return none(width, height, rng)


def strong_flip(width: int, height: int, rng: np.random.Generator) -> Transform:
    """`strong`, and a mirror image half of the time.

    The training step applies it, as it does `strong`.
    """
    return none(width, height, rng)


POLICIES: dict[str, Policy] = {
    "none": none,
    "official": official,
    "light": light,
    "light_flip": light_flip,
    "strong": strong,
    "strong_flip": strong_flip,
}
MIRRORING = ("official", "light_flip", "strong_flip")  # policies that show mirror images
ON_DEVICE = ("strong", "strong_flip")  # policies that only the training step can apply


def changes_when_read(policy: str) -> bool:
    """Whether the policy of this name changes training images while they are read.

    If it does not, the images can be kept resized.
    """
    return policy not in ("none", *ON_DEVICE)


def _mirrored_at_random(transform: Transform, rng: np.random.Generator) -> Transform:
    """Adds a mirror image to a transform, half of the time."""
    if rng.random() >= 0.5:
        return transform
    return lambda image: transform(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def random_crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws a crop by the algorithm of torchvision's RandomResizedCrop.

    It tries ten times to draw an area of 8 % to 100 % of the image and an aspect ratio of 3/4 to
    4/3, uniform in its logarithm. If no try fits into the image, it takes the largest centred crop
    with an allowed aspect ratio.

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        rng: generator of the random numbers.

    Returns:
        left, top, width and height of the crop in pixels.
    """
    log_aspect = np.log(CROP_ASPECT)
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*CROP_AREA)
        aspect = math.exp(rng.uniform(*log_aspect))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return left, top, crop_width, crop_height
    return largest_crop_box(width, height)


def largest_crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the largest centred crop of an allowed aspect ratio: left, top, width, height."""
    crop_width = min(width, max(1, round(height * CROP_ASPECT[1])))
    crop_height = min(height, max(1, round(width / CROP_ASPECT[0])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height
