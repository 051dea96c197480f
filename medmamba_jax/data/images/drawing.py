"""What all drawn pictures share: images in RGB, colours, and a font that has most scripts."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image, ImageFont

BACKGROUND, INK, MARGIN = "white", "black", "gainsboro"
_FONT_SIZE = 15
_NO_CHARACTER = "\U0010ffff"


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Returns an image, uint8 (h, w, c), in RGB: its first three channels, or the first one."""
    shown = pixels[..., :3] if pixels.shape[2] in (3, 4) else pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")


def font(size: int = _FONT_SIZE) -> Any:
    """Returns DejaVu Sans, which has the letters of most scripts; matplotlib brings it."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None and found.origin is not None
    path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def shortened(text: str, width: int, letters: Any) -> str:
    """Returns a text that is at most `width` pixels wide; an ellipsis replaces its middle."""
    shown, kept = text, len(text)
    while kept and letters.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}\u2026{text[len(text) - kept // 2 :]}"
    return shown


def warn_of_missing(text: str, letters: Any) -> None:
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
