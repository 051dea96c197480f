"""Images of any number of channels as images that Pillow can work on."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def to_planes(pixels: np.ndarray) -> list[Image.Image]:
    """Returns an image as one Pillow image of mode L or RGB, or as one of mode L a channel.

    Pillow would weigh the channels of its two- and four-channel modes by the last, as alpha.

    Args:
        pixels: uint8 (h, w, c).
    """
    channels = pixels.shape[2]
    if channels == 3:
        return [Image.fromarray(pixels)]
    return [Image.fromarray(pixels[..., channel]) for channel in range(channels)]


def from_planes(planes: Sequence[Image.Image]) -> np.ndarray:
    """Returns what `to_planes` took, uint8 (h, w, c)."""
    if len(planes) == 1:
        return np.atleast_3d(np.asarray(planes[0]))
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)
