"""Converts intensities of more than 8 bits to 8 bits."""

import math
from typing import cast

import numpy as np

from medmamba_jax.errors import UserError
from medmamba_jax.sections import is_number

Window = str | tuple[float, float]

NAMED_WINDOWS = ("auto", "full")
ALLOWED = "'auto', 'full', or two numbers LOW,HIGH with LOW < HIGH"


def parse_window(value: object) -> Window:
    """Parses a window from a command line, a config file or JSON.

    Args:
        value: "auto", "full", "LOW,HIGH", or two numbers.

    Returns:
        "auto", "full" or (low, high).

    Raises:
        UserError: `value` is none of these.
    """
    if isinstance(value, str):
        if value in NAMED_WINDOWS:
            return value
        try:
            value = [float(bound) for bound in value.strip("() ").split(",")]
        except ValueError:
            raise UserError(f"a window must be {ALLOWED}; got {value!r}") from None
    bounds = tuple(value) if isinstance(value, tuple | list) else ()
    if len(bounds) == 2 and all(map(is_number, bounds)) and bounds[0] < bounds[1]:
        return float(bounds[0]), float(bounds[1])
    raise UserError(f"a window must be {ALLOWED}; got {value!r}")


def to_uint8(pixels: np.ndarray, window: Window) -> np.ndarray:
    """Maps a window of intensities to 0..255, linearly and rounded to the nearest integer.

    Values outside a (low, high) window become 0 or 255. With "auto", an image with only one value
    becomes black. uint8 pixels do not change with any window.

    Args:
        pixels: any shape; integers, floating point numbers or booleans.
        window: "auto": from the smallest to the largest value of these pixels. "full": the whole
            range of their dtype. Or (low, high).

    Returns:
        uint8, of the same shape.

    Raises:
        UserError: the pixels are not real numbers, some are NaN or infinite, or the window is
            "full" and the pixels are floating point numbers, which have no full range.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind not in "biuf":
        raise UserError(f"pixels must be real numbers; got {pixels.dtype}: save them as such")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UserError("some pixels are NaN or infinite: replace them by numbers")
    if window == "auto":
        if pixels.dtype.kind in "iu" and pixels.itemsize == 8:  # keeps what float64 would round off
            pixels = (pixels - pixels.min()).astype(np.uint64)
        low, high = float(pixels.min()), float(pixels.max())
    elif window == "full":
        low, high = _dtype_range(pixels.dtype)
    else:
        low, high = cast(tuple[float, float], window)
    if low == high:
        return np.where(pixels > low, 255, 0).astype(np.uint8)
    if not math.isfinite(255 * (high - low)):
        raise UserError("the pixels span more than float64 can hold: divide them by a constant")
    scaled = (pixels.astype(np.float64) - low) * 255 / (high - low)
    return np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8)


def _dtype_range(dtype: np.dtype) -> tuple[float, float]:
    if dtype.kind == "b":
        return 0.0, 1.0
    if dtype.kind == "f":
        raise UserError(
            f"{dtype} pixels have no full range: set data.window to auto or to LOW,HIGH"
        )
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)
