"""Draws heat maps over images, with a legend, and sheets of such pictures."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from medmamba_jax.data.images.drawing import (
    BACKGROUND,
    INK,
    MARGIN,
    as_picture,
    font,
    shortened,
    warn_of_missing,
)
from medmamba_jax.explanation.methods import METHODS

_COLOURS = {False: "inferno", True: "RdBu_r"}  # by whether values can be negative
_SHARE = 99.5  # percentile of the absolute values that gets the strongest colour
_OPAQUE = 0.6  # of the strongest colour
_LONGEST, _SHORTEST = 1024, 384  # pixels, the longer side of an overlay
_UNKNOWN = (128, 128, 128)  # what the model did not see
_BAR, _GAP = 14, 6  # pixels
_NARROWEST = 440  # pixels, of a legend with a title
_SPACE, _TILE, _LINE = 4, 160, 20  # pixels, of a sheet: between tiles, a tile, a line of text
GROUND = 128  # the grey under the colours of a legend


def limit_of(heat: np.ndarray) -> float:
    """Returns the value that gets the strongest colour: the 99.5th percentile of the sizes.

    A few extreme pixels would leave all others without colour. NaN does not count.
    """
    found = float(np.nanpercentile(np.abs(heat), _SHARE))
    return found if found > 0 else float(np.nanmax(np.abs(heat))) or 1.0


def overlay(pixels: np.ndarray, heat: np.ndarray, method: str) -> Image.Image:
    """Returns an image with its heat map over it; the stronger a value, the less transparent.

    Args:
        pixels: uint8 (h, w, c), as `Preprocessing.decode` returns them.
        heat: float32 (h, w), as `Preprocessing.unresize` returns it. NaN is shown in grey.
        method: name in `METHODS`.
    """
    height, width = heat.shape
    longer = max(height, width)
    scale = min(max(longer, _SHORTEST), _LONGEST) / longer
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = as_picture(pixels).convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC)
    seen = Image.fromarray(np.isfinite(heat)).resize(size, Image.Resampling.NEAREST)
    filled = Image.fromarray(np.nan_to_num(heat)).resize(size, Image.Resampling.BILINEAR)
    blended = _blend(np.asarray(shown), np.asarray(filled) / limit_of(heat), method)
    return Image.composite(blended, Image.new("RGB", size, _UNKNOWN), seen)


def with_legend(picture: Image.Image, heat: np.ndarray, method: str, title: str) -> Image.Image:
    """Returns an overlay above its legend, which has the title and the values of the colours."""
    width = max(picture.width, _NARROWEST)
    bar = legend(width, method, title, limit_of(heat))
    whole = Image.new("RGB", (width, picture.height + bar.height), BACKGROUND)
    whole.paste(picture, ((width - picture.width) // 2, 0))
    whole.paste(bar, (0, picture.height))
    return whole


def legend(width: int, method: str, title: str, limit: float | None = None) -> Image.Image:
    """Draws a bar of colours over mid-grey, under a title.

    Args:
        width: in pixels.
        method: name in `METHODS`.
        title: one line.
        limit: the value of the strongest colour; None says that each image has its own.
    """
    row = METHODS[method]
    most = "each image's own" if limit is None else f"{limit:.2g}"
    ends = [f"\u2212{most}" if row.signed else "0", f"{most} and more"]
    if limit is None and row.signed:
        ends = ["lowest", "highest"]
    elif limit is None:
        ends = ["0", "highest of the image"]
    letters, small = font(14), font(12)
    drawn = Image.new("RGB", (width, 2 * _GAP + 20 + _BAR + 20), BACKGROUND)
    draw = ImageDraw.Draw(drawn)
    draw.text((_GAP, _GAP), shortened(title, width - 2 * _GAP, letters), INK, letters)
    length, top = width - 2 * _GAP, _GAP + 22
    values = np.tile(np.linspace(-1 if row.signed else 0, 1, length), (_BAR, 1))
    drawn.paste(_blend(np.full((_BAR, length, 3), GROUND, np.uint8), values, method), (_GAP, top))
    y = top + _BAR + 2
    draw.text((_GAP, y), ends[0], INK, small)
    draw.text((width / 2, y), row.unit, INK, small, anchor="ma")
    draw.text((width - _GAP, y), ends[1], INK, small, anchor="ra")
    return drawn


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
    width = pictures * (_TILE + _SPACE) - _SPACE
    step = (width + 3 * _SPACE, _TILE + lines * _LINE + 3 * _SPACE)
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    size = (max(columns * step[0], foot.width) + _SPACE, rows * step[1] + foot.height + 2 * _SPACE)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw, letters = ImageDraw.Draw(sheet), font()
    warn_of_missing("".join(line for _, of_cell in cells for line in of_cell), letters)
    for place, (drawn, of_cell) in enumerate(cells):
        top, left = (
            n * s + _SPACE for n, s in zip(divmod(place, columns), step[::-1], strict=True)
        )
        for column, picture in enumerate(drawn):
            tile = ImageOps.pad(picture, (_TILE,) * 2, Image.Resampling.LANCZOS, MARGIN)
            sheet.paste(tile, (left + column * (_TILE + _SPACE), top))
        for row, line in enumerate(of_cell):
            y = top + _TILE + row * _LINE
            draw.text((left, y), shortened(line, width, letters), INK, letters)
    sheet.paste(foot, (_SPACE, rows * step[1] + _SPACE))
    return sheet


def as_png(picture: Image.Image) -> bytes:
    """Returns a picture as the bytes of a PNG file."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _blend(pixels: np.ndarray, values: np.ndarray, method: str) -> Image.Image:
    """Colours pixels, uint8 (h, w, 3), by values from -1 or 0 to 1, which make them opaque, too."""
    signed = METHODS[method].signed
    values = np.clip(values, -1 if signed else 0, 1)
    colours = matplotlib.colormaps[_COLOURS[signed]](values / 2 + 0.5 if signed else values)
    opacity = _OPAQUE * np.abs(values)[..., None]
    mixed = (1 - opacity) * pixels + opacity * 255 * colours[..., :3]
    return Image.fromarray(np.rint(mixed).astype(np.uint8))
