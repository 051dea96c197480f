"""Pictures of images, in rows of tiles."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image, ImageDraw, ImageFont, ImageOps

from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.errors import UserError

_GAP = 4  # pixels between tiles
_TILE = 128  # pixels, both sides, of a contact sheet
_HEADING = 22
_FONT_SIZE = 15
_LINE = 20  # pixels from one line of text to the next
_NO_CHARACTER = "\U0010ffff"
BACKGROUND, INK, _MARGIN = "white", "black", "gainsboro"
_LARGE_TILE = 160  # pixels, both sides, of the other sheets
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
    _warn_of_missing("".join(rows), letters)
    for i, (heading, images) in enumerate(rows.items()):
        draw.text((_GAP, i * height + 2), heading, INK, letters)
        for column, pixels in enumerate(images):
            place = (_GAP + column * (_TILE + _GAP), i * height + _HEADING)
            tile = ImageOps.pad(
                as_picture(pixels), (_TILE, _TILE), Image.Resampling.LANCZOS, _MARGIN
            )
            sheet.paste(tile, place)
    return sheet


def captioned_sheet(
    cells: Sequence[tuple[Sequence[Image.Image], Sequence[str]]], columns: int, foot: Image.Image
) -> Image.Image:
    """Draws pictures side by side in cells, with lines of text under each cell.

    A picture keeps its aspect ratio. A line that is too long ends in an ellipsis.

    Args:
        cells: the pictures and the lines of each cell; every cell has as many of both.
        columns: cells side by side.
        foot: is drawn below all of them.
    """
    pictures, lines = len(cells[0][0]), len(cells[0][1])
    width = pictures * (_LARGE_TILE + _GAP) - _GAP
    step = (width + 3 * _GAP, _LARGE_TILE + lines * _LINE + 3 * _GAP)
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    size = (max(columns * step[0], foot.width) + _GAP, rows * step[1] + foot.height + 2 * _GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw, letters = ImageDraw.Draw(sheet), font()
    _warn_of_missing("".join(line for _, of_cell in cells for line in of_cell), letters)
    for place, (drawn, of_cell) in enumerate(cells):
        top, left = (n * s + _GAP for n, s in zip(divmod(place, columns), step[::-1], strict=True))
        for column, picture in enumerate(drawn):
            tile = ImageOps.pad(picture, (_LARGE_TILE,) * 2, Image.Resampling.LANCZOS, _MARGIN)
            sheet.paste(tile, (left + column * (_LARGE_TILE + _GAP), top))
        for row, line in enumerate(of_cell):
            y = top + _LARGE_TILE + row * _LINE
            draw.text((left, y), shortened(line, width, letters), INK, letters)
    sheet.paste(foot, (_GAP, rows * step[1] + _GAP))
    return sheet


def shortened(text: str, width: int, letters: Any) -> str:
    """Returns a text that is at most `width` pixels wide; an ellipsis replaces its middle."""
    shown, kept = text, len(text)
    while kept and letters.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}\u2026{text[len(text) - kept // 2 :]}"
    return shown


def font(size: int = _FONT_SIZE) -> Any:
    """Returns DejaVu Sans, which has the letters of most scripts; matplotlib brings it."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None and found.origin is not None
    path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def _warn_of_missing(text: str, letters: Any) -> None:
    """Warns of the characters that the font draws as its sign for an unknown character."""
    unknown = bytes(letters.getmask(_NO_CHARACTER))
    characters = sorted({c for c in text if c.isprintable() and not c.isspace()})
    missing = [c for c in characters if bytes(letters.getmask(c)) == unknown]
    if missing:
        logging.warning(
            "the picture cannot show the characters %s of names: the font %s lacks them",
            " ".join(missing),
            " ".join(letters.getname()),
        )


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Returns an image, uint8 (h, w, c), in RGB: its first three channels, or the first one."""
    shown = pixels[..., :3] if pixels.shape[2] in (3, 4) else pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")


def augmentation_sheet(
    images: Sequence[np.ndarray], policy: str, seed: int, fit: str = "stretch"
) -> Image.Image:
    """Draws a row for each image: the image itself, then six augmented versions of it.

    Every tile is resized to a square, as training resizes images to the model's input. The channels
    that are shown are those of `contact_sheet`.

    Args:
        images: uint8 (h, w, c), as `Preprocessing.decode` returns them; sizes may differ.
        policy: name in `POLICIES`.
        seed: the same seed gives the same picture.
        fit: how an image that is no square becomes one, see `DataConfig.fit`.

    Raises:
        UserError: there are no images, or no policy has this name.
    """
    if policy not in POLICIES:
        raise UserError(f"augmentation must be one of {tuple(POLICIES)}; got {policy!r}")
    if not images:
        raise UserError("no images to show the augmentation on")
    step = _LARGE_TILE + _GAP
    size = (step * (1 + _DRAWS) - _GAP, step * len(images) - _GAP)
    sheet = Image.new("RGB", size, "white")
    for row, pixels in enumerate(images):
        height, width, _ = pixels.shape
        rng = np.random.default_rng((seed, row))
        drawn = [POLICIES[policy](width, height, rng) for _ in range(_DRAWS)]
        resize = Preprocessing(
            (_LARGE_TILE,) * 2, pixels.shape[2], "bilinear", mean=(0.0,), std=(1.0,), fit=fit
        ).resize
        for column, transform in enumerate([POLICIES["none"](width, height, rng), *drawn]):
            tile = as_picture(resize(pixels, transform))
            sheet.paste(tile, (step * column, step * row))
    return sheet
