"""Pictures that `medmamba inspect` draws: images in rows of tiles."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from medmamba_jax.data.images.augmentation import ON_DEVICE, POLICIES, unchanged
from medmamba_jax.data.images.drawing import (
    BACKGROUND,
    INK,
    MARGIN,
    as_picture,
    font,
    warn_of_missing,
)
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.errors import UserError

_GAP = 4  # pixels between tiles
_TILE = 128  # pixels, both sides, of a contact sheet
_HEADING = 22
_LARGE_TILE = 160  # pixels, both sides, of the sheet of augmented images
_DRAWS = 6  # augmented versions of each image


def contact_sheet(rows: Mapping[str, Sequence[np.ndarray]]) -> Image.Image:
    """Draws a row of images for each class, under the name of the class.

    An image keeps its aspect ratio. If an image has 3 or 4 channels, the sheet shows the first
    three; else it shows the first channel.

    Args:
        rows: heading -> images, uint8 (h, w, c); a row may be empty.

    Raises:
        UserError: all rows are empty.
    """
    columns = max(map(len, rows.values()), default=0)
    if not columns:
        raise UserError("no images to show")
    height = _HEADING + _TILE + _GAP
    sheet = Image.new("RGB", (columns * (_TILE + _GAP) + _GAP, height * len(rows)), BACKGROUND)
    draw, letters = ImageDraw.Draw(sheet), font()
    warn_of_missing("".join(rows), letters)
    for i, (heading, images) in enumerate(rows.items()):
        draw.text((_GAP, i * height + 2), heading, INK, letters)
        for column, pixels in enumerate(images):
            place = (_GAP + column * (_TILE + _GAP), i * height + _HEADING)
            tile = ImageOps.pad(
                as_picture(pixels), (_TILE, _TILE), Image.Resampling.LANCZOS, MARGIN
            )
            sheet.paste(tile, place)
    return sheet


# (name of a policy, images uint8 (b, h, w, 3), number of the draw) -> images of the same shape
InStep = Callable[[str, np.ndarray, int], np.ndarray]


def augmentation_sheet(
    images: Sequence[np.ndarray],
    policy: str,
    seed: int,
    fit: str = "stretch",
    in_step: InStep | None = None,
) -> Image.Image:
    """Draws a row for each image: the image itself, then six augmented versions of it.

    Every tile is resized to a square, as training resizes images to the model's input. The channels
    that are shown are those of `contact_sheet`. A policy in `ON_DEVICE` changes the resized tiles.
    Each column is then one batch, so that its images are mixed.

    Args:
        images: uint8 (h, w, c), as `Preprocessing.decode` returns them; sizes may differ.
        policy: name in `POLICIES`.
        seed: the same seed gives the same picture.
        fit: how an image that is no square becomes one, see `DataConfig.fit`.
        in_step: changes images as the training step does. The policies in `ON_DEVICE` need it.

    Raises:
        UserError: there are no images, no policy has this name, or the policy needs `in_step`.
    """
    if policy not in POLICIES:
        raise UserError(f"augmentation must be one of {tuple(POLICIES)}; got {policy!r}")
    if policy in ON_DEVICE and in_step is None:
        raise UserError(f"only the training step can apply augmentation {policy!r}: pass in_step")
    if not images:
        raise UserError("no images to show the augmentation on")
    rows = []
    for row, pixels in enumerate(images):
        height, width, channels = pixels.shape
        rng = np.random.default_rng((seed, row))
        drawn = [POLICIES[policy](width, height, rng) for _ in range(_DRAWS)]
        resize = Preprocessing(
            (_LARGE_TILE,) * 2, channels, "bilinear", mean=(0.0,), std=(1.0,), fit=fit
        ).resize
        rows.append([as_picture(resize(pixels, transform)) for transform in (unchanged, *drawn)])
    if policy in ON_DEVICE and in_step is not None:
        batch = np.stack([np.asarray(tiles[0]) for tiles in rows])
        for draw in range(_DRAWS):
            for tiles, pixels in zip(
                rows, in_step(policy, batch, seed * _DRAWS + draw), strict=True
            ):
                tiles[1 + draw] = as_picture(pixels)
    step = _LARGE_TILE + _GAP
    size = (step * (1 + _DRAWS) - _GAP, step * len(images) - _GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (step * column, step * row))
    return sheet
