"""A picture of a few images of each class."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from medmamba_jax.errors import UserError

_TILE = 128  # pixels, both sides
_GAP = 4
_HEADING = 22
_BACKGROUND, _INK, _MARGIN = "white", "black", "gainsboro"


def contact_sheet(rows: Mapping[str, Sequence[np.ndarray]]) -> Image.Image:
    """Draws a row for each class, under its name.

    An image keeps its aspect ratio. Of images with other than 1, 3 or 4 channels the first is
    shown; alpha is not.

    Args:
        rows: heading -> images, uint8 (h, w, c); a row may be empty.

    Raises:
        UserError: if there are no images at all.
    """
    columns = max(map(len, rows.values()), default=0)
    if not columns:
        raise UserError("no images to show")
    height = _HEADING + _TILE + _GAP
    sheet = Image.new("RGB", (columns * (_TILE + _GAP) + _GAP, height * len(rows)), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (heading, images) in enumerate(rows.items()):
        draw.text((_GAP, i * height + 2), heading, _INK, font)
        for column, pixels in enumerate(images):
            place = (_GAP + column * (_TILE + _GAP), i * height + _HEADING)
            sheet.paste(_tile(pixels), place)
    return sheet


def _tile(pixels: np.ndarray) -> Image.Image:
    shown = pixels[..., :3] if pixels.shape[2] in (3, 4) else pixels[..., 0]
    image = Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")
    return ImageOps.pad(image, (_TILE, _TILE), Image.Resampling.LANCZOS, _MARGIN)
