"""Converts images with any number of channels to Pillow images, and back."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def to_planes(pixels: np.ndarray) -> list[Image.Image]:
    """Returns one Pillow image of mode L or RGB, or one image of mode L for each channel.

    It does not use Pillow's modes with two or four channels: there, Pillow takes the last channel
    as alpha and weights the others by it.

    Args:
        pixels: uint8 (h, w, c).
    """
    channels = pixels.shape[2]
    if channels == 3:
        return [Image.fromarray(pixels)]
    return [Image.fromarray(pixels[..., channel]) for channel in range(channels)]


def from_planes(planes: Sequence[Image.Image]) -> np.ndarray:
    """Inverts `to_planes`: returns uint8 (h, w, c)."""
    if len(planes) == 1:
        return np.atleast_3d(np.asarray(planes[0]))
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)
