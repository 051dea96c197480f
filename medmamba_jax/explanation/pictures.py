"""Draws heat maps over images, with a legend."""

import io

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from medmamba_jax.data.inspection.sheets import BACKGROUND, INK, as_picture, font, shortened
from medmamba_jax.explanation.methods import METHODS

_COLOURS = {False: "inferno", True: "RdBu_r"}  # by whether values can be negative
_SHARE = 99.5  # percentile of the absolute values that gets the strongest colour
_OPAQUE = 0.6  # of the strongest colour
_LONGEST, _SHORTEST = 1024, 384  # pixels, the longer side of an overlay
_UNKNOWN = (128, 128, 128)  # what the model did not see
_BAR, _GAP = 14, 6  # pixels
_NARROWEST = 440  # pixels, of a legend with a title
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
