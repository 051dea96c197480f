"""From an image file to the array that the model reads."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from medmamba_jax.data.config import ALL_FRAMES, RESIZE_FILTERS, DataConfig
from medmamba_jax.data.dataset import Split
from medmamba_jax.data.images.augmentation import Transform, unchanged
from medmamba_jax.data.images.decoding import count_frames, open_image
from medmamba_jax.data.images.planes import from_planes, to_planes
from medmamba_jax.data.images.windowing import Window, parse_window

_MODES = {1: "L", 3: "RGB"}
_RESAMPLING = {name: Image.Resampling[name.upper()] for name in RESIZE_FILTERS}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How every image is prepared; saved with a run so that evaluation repeats it.

    Attributes:
        image_size: (height, width) in pixels.
        channels: 1 (grey), 3 (RGB), or any other number, which every image must bring.
        resize_filter: resampling filter, a name of `DataConfig.resize`.
        mean: on the 0..1 scale; one value, or one per channel.
        std: on the 0..1 scale; one value, or one per channel.
        window: what becomes 0..255 of images with more than 8 bits; see `DataConfig.window`.
        frame: which frame of a file with several; see `DataConfig.frame`.

    Raises:
        ValueError: if `channels`, `resize_filter`, `window`, or the length of `mean` or `std` is
            not allowed.
    """

    image_size: tuple[int, int]
    channels: int
    resize_filter: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    window: Window = "auto"
    frame: int = 0

    def __post_init__(self):
        object.__setattr__(self, "window", parse_window(self.window))
        if self.channels < 1:
            raise ValueError(f"images have 1 or more channels; got {self.channels}")
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
            window=config.window,
            frame=config.frame,
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

    def decode(self, image: bytes | np.ndarray) -> np.ndarray:
        """Decodes an image to the channels of the model, upright, by `open_image`.

        Towards 1 or 3 channels, colour becomes grey by the ITU-R 601-2 luma weights; an alpha
        channel (an array's fourth) is dropped, not blended with a background; palettes and CMYK
        are converted. Any other number of channels must be the image's own.

        Args:
            image: the bytes of an image file, or an array, as `open_image` takes them.

        Returns:
            uint8 (h, w, channels); an array that is like this already is returned itself.

        Raises:
            DataUnavailableError: if the package that reads such files is not installed.
            ValueError: if `open_image` refuses the image, it does not have the model's channels, or
                it holds several frames and `frame` says that they are images of their own.
        """
        if isinstance(image, np.ndarray) and image.dtype == np.uint8:
            if image.ndim == 3 and image.shape[2] == self.channels and image.size:
                return image
        frame = self.frame
        if frame == ALL_FRAMES:
            # A set's splits have taken such files apart (`AllFrames`); this one is none of them.
            if isinstance(image, bytes) and (frames := count_frames(image)) > 1:
                raise ValueError(
                    f"the file holds {frames} frames, each to be an image of its own (data.frame):"
                    " take it apart by medmamba_jax.data.sources.frames.AllFrames"
                )
            frame = 0
        opened = open_image(image, window=self.window, frame=frame)
        if self.channels in _MODES and isinstance(opened, Image.Image):
            mode = _MODES[self.channels]
            return from_planes([opened if opened.mode == mode else opened.convert(mode)])
        pixels = np.atleast_3d(np.asarray(opened))
        if pixels.shape[2] != self.channels:
            raise ValueError(
                f"the image has {pixels.shape[2]} channels, the model reads {self.channels}"
                f" (model.in_channels): set that to {pixels.shape[2]}, or save the image as .npy"
                f" (h, w, {self.channels})"
            )
        return pixels

    def resize(self, pixels: np.ndarray, transform: Transform = unchanged) -> np.ndarray:
        """Transforms a decoded image and resizes it to `image_size`, each channel alike.

        The aspect ratio is not kept.

        Args:
            pixels: uint8 (h, w, channels), as `decode` returns them.
            transform: what to do first, at the image's own size.

        Returns:
            uint8 (*image_size, channels); of an image that needs neither, the array itself.
        """
        if transform is unchanged and pixels.shape[:2] == self.image_size:
            return pixels
        height, width = self.image_size
        resampling = _RESAMPLING[self.resize_filter]
        return from_planes(
            [transform(plane).resize((width, height), resampling) for plane in to_planes(pixels)]
        )

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


def decoded(
    split: Split, index: int, preprocessing: Preprocessing
) -> tuple[np.ndarray, int | np.ndarray]:
    """Reads and decodes an image of a split.

    Returns:
        uint8 (h, w, channels) at the image's own size, and its label.

    Raises:
        ValueError: if it cannot be decoded; the message names the image.
    """
    example = split[index]
    try:
        return preprocessing.decode(example["image"]), example["label"]
    except ValueError as error:
        raise ValueError(f"{split.describe(index)}: {error}") from error
