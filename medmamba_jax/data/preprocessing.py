"""From an image file to the array that the model reads."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from medmamba_jax.data.config import RESIZE_FILTERS, DataConfig
from medmamba_jax.data.decoding import open_image

_MODES = {1: "L", 3: "RGB"}
_RESAMPLING = {name: Image.Resampling[name.upper()] for name in RESIZE_FILTERS}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How every image is prepared; saved with a run so that evaluation repeats it.

    Attributes:
        image_size: (height, width) in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize_filter: resampling filter, a name of `DataConfig.resize`.
        mean: on the 0..1 scale; one value, or one per channel.
        std: on the 0..1 scale; one value, or one per channel.

    Raises:
        ValueError: if `channels`, `resize_filter`, or the length of `mean` or `std` is not allowed.
    """

    image_size: tuple[int, int]
    channels: int
    resize_filter: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if self.channels not in _MODES:
            raise ValueError(
                f"images can be read with 1 (grey) or 3 (RGB) channels; got {self.channels}"
            )
        if self.resize_filter not in _RESAMPLING:
            raise ValueError(
                f"resize_filter must be one of {RESIZE_FILTERS}; got {self.resize_filter!r}"
            )
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"data.{field} must have one value or one for each of the {self.channels}"
                    f" channels; got {values}"
                )

    @classmethod
    def from_config(cls, config: DataConfig, channels: int) -> "Preprocessing":
        """Builds the preprocessing of a run; `channels` is what the model takes."""
        size = config.image_size
        return cls(
            image_size=size if isinstance(size, tuple) else (size, size),
            channels=channels,
            resize_filter=config.resize,
            mean=config.mean,
            std=config.std,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary that JSON can hold; `from_dict` reads it back."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: if a key is missing or unknown.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(values) != expected:
            raise ValueError(
                f"saved preprocessing must have the keys {sorted(expected)}; got {sorted(values)}"
            )
        return cls(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }
        )

    def decode(self, image: bytes | np.ndarray) -> Image.Image:
        """Decodes an image to mode L or RGB, upright.

        Colour becomes grey by the ITU-R 601-2 luma weights; an alpha channel is dropped, not
        blended with a background; palettes and CMYK are converted.

        Args:
            image: the bytes of an image file, or a uint8 array as `open_image` takes it.

        Raises:
            ValueError: if the image is damaged or has more than 8 bits per channel.
        """
        opened = open_image(image)
        mode = _MODES[self.channels]
        if opened.mode == mode:
            return opened
        if opened.mode in ("P", "PA", "CMYK", "YCbCr"):  # through RGB, for both targets alike
            opened = opened.convert("RGB")
        return opened.convert(mode)

    def resize(self, image: Image.Image) -> np.ndarray:
        """Resizes a decoded image to `image_size`; the aspect ratio is not kept.

        Returns:
            uint8 array (h, w, channels).
        """
        height, width = self.image_size
        resized = image.resize((width, height), _RESAMPLING[self.resize_filter])
        return np.asarray(resized, np.uint8).reshape(height, width, self.channels)

    def normalize(self, images: jax.Array) -> jax.Array:
        """Computes `(images / 255 - mean) / std`; written for use inside a jitted step.

        Args:
            images: uint8 (b, h, w, c).

        Returns:
            float32 (b, h, w, c).
        """
        mean = jnp.asarray(np.broadcast_to(self.mean, (1, 1, 1, self.channels)), jnp.float32)
        std = jnp.asarray(np.broadcast_to(self.std, (1, 1, 1, self.channels)), jnp.float32)
        return (images.astype(jnp.float32) / 255 - mean) / std
