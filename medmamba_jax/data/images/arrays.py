"""Reads NumPy's arrays and .npy files."""

import io

import numpy as np

from medmamba_jax.data.images.image_file import (
    ImageFile,
    Picture,
    explained_damage,
    rendered,
    require_size,
)
from medmamba_jax.data.images.windowing import Window
from medmamba_jax.errors import UserError


def channels_first(shape: tuple[int, ...]) -> str:
    """Returns a hint if the first axis of an image array may hold the channels, else ""."""
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] > 4:
        return "if the first axis holds the channels, save numpy.moveaxis(image, 0, -1)"
    return ""


class ArrayFile(ImageFile):
    """An array (h, w) or (h, w, c) of any real dtype, with any number of channels.

    Args:
        content: the array, or the bytes of a .npy file.

    Raises:
        UserError: the file is damaged or pickled.
    """

    expected = "a complete .npy file of numbers"

    def __init__(self, content: bytes | np.ndarray):
        super().__init__(content)
        self._name = "npy" if isinstance(content, bytes) else "array"
        if isinstance(content, np.ndarray):
            self._pixels = content
        else:
            with explained_damage(self.expected):
                self._pixels = np.load(io.BytesIO(content), allow_pickle=False)

    def _kind(self) -> str:
        pixels = self._pixels
        channels = 1 if pixels.ndim < 3 else pixels.shape[-1]
        hint = channels_first(pixels.shape)
        return (
            f"{self._name}, {pixels.dtype}, {channels} channel{'s' if channels > 1 else ''}"
            f"{hint and f', but {hint}'}"
        )

    def _read(self, window: Window, frame: int, max_pixels: int) -> Picture:
        pixels = self._pixels
        if pixels.ndim not in (2, 3) or not pixels.size:
            raise UserError(
                "an image array must have the shape (h, w) or (h, w, channels) and hold pixels; got"
                f" {pixels.shape}"
            )
        if self._name == "npy":
            require_size(pixels.shape[0], pixels.shape[1], max_pixels)
        return rendered(pixels, window)
