"""A picture of what an augmentation policy does to images."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.images.planes import from_planes, to_planes
from medmamba_jax.errors import UserError

_TILE = 160  # pixels, both sides
_GAP = 4
_DRAWS = 6  # for each image


def augmentation_sheet(images: Sequence[np.ndarray], policy: str, seed: int) -> Image.Image:
    """Draws a row for each image: the image itself, then what six draws of the policy make of it.

    Every tile is resized to a square, as training resizes to the model's input. Of images with
    other than 1 or 3 channels the first is shown.

    Args:
        images: uint8 (h, w, c), as `Preprocessing.decode` returns them; sizes may differ.
        policy: name in `POLICIES`.
        seed: the same seed gives the same picture.

    Raises:
        UserError: if there are no images, or no such policy.
    """
    if policy not in POLICIES:
        raise UserError(f"augmentation must be one of {tuple(POLICIES)}; got {policy!r}")
    if not images:
        raise UserError("no images to show the augmentation on")
    step = _TILE + _GAP
    size = (step * (1 + _DRAWS) - _GAP, step * len(images) - _GAP)
    sheet = Image.new("RGB", size, "white")
    for row, pixels in enumerate(images):
        height, width, _ = pixels.shape
        rng = np.random.default_rng((seed, row))
        drawn = [POLICIES[policy](width, height, rng) for _ in range(_DRAWS)]
        for column, transform in enumerate([POLICIES["none"](width, height, rng), *drawn]):
            changed = from_planes([transform(plane) for plane in to_planes(pixels)])
            sheet.paste(_tile(changed), (step * column, step * row))
    return sheet


def _tile(pixels: np.ndarray) -> Image.Image:
    shown = pixels if pixels.shape[2] == 3 else pixels[..., 0]
    return Image.fromarray(shown).resize((_TILE, _TILE), Image.Resampling.BILINEAR)
