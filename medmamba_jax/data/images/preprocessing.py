"""Turns an image file into the uint8 array that a batch holds.

This module does not normalise images, because that runs on the accelerator. It does not import JAX
either, so that processes that only read images start without it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from medmamba_jax.data.images.arrays import channels_first
from medmamba_jax.data.images.augmentation import Transform, unchanged
from medmamba_jax.data.images.decoding import open_image, parsed
from medmamba_jax.data.images.image_file import MAX_PIXELS, raise_limit_of_pillow
from medmamba_jax.data.images.planes import from_planes, to_planes
from medmamba_jax.data.images.windowing import Window, parse_window
from medmamba_jax.errors import UserError
from medmamba_jax.sections import Section, is_integer

# Name -> resampling filter. Pillow antialiases with every filter but the nearest neighbour.
RESIZE_FILTERS: Mapping[str, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
ALL_FRAMES = -1  # a value of `frame`: each frame of a file becomes a separate image

FITS = ("stretch", "pad", "crop")

_MODES = {1: "L", 3: "RGB"}
_Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclasses.dataclass(frozen=True)
class Preprocessing(Section):
    """The settings that prepare every image. A run saves them for evaluation and prediction.

    Attributes:
        image_size: (height, width) in pixels.
        channels: 1 (grey), 3 (RGB), or another number. With another number, every image must have
            exactly this many channels.
        resize_filter: name of a resampling filter in `RESIZE_FILTERS`.
        mean: mean on the scale from 0 to 1; one value, or one for each channel.
        std: standard deviation on the same scale; one value, or one for each channel.
        window: which intensities of images with more than 8 bits become 0 to 255; see
            `parse_window`.
        frame: index of the frame to read from a file with several frames, counted from 0, or
            `ALL_FRAMES`.
        fit: how an image of another aspect ratio meets `image_size`; see `DataConfig.fit`.
        max_pixels: the most pixels of an image file; see `DataConfig.max_pixels`.

    Raises:
        UserError: `channels`, `resize_filter`, `window`, `max_pixels`, or the length of `mean` or
            `std` is not allowed.
    """

    title: ClassVar[str] = "preprocessing"

    image_size: tuple[int, int]
    channels: int
    resize_filter: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    window: Window = "auto"
    frame: int = 0
    fit: str = "stretch"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", parse_window(self.window))
        if self.channels < 1:
            raise UserError(f"images have 1 or more channels; got {self.channels}")
        self._require_one_of("resize_filter", RESIZE_FILTERS)
        self._require_one_of("fit", FITS)
        self._require("max_pixels", is_integer(self.max_pixels, 1), "an integer, 1 or more")
        raise_limit_of_pillow(self.max_pixels)
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) not in (1, self.channels):
                raise UserError(
                    f"data.{field} must have one value or one for each of the {self.channels}"
                    f" channels; got {values}"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        raise_limit_of_pillow(self.max_pixels)  # in a worker process

    @property
    def image_bytes(self) -> int:
        """The bytes of a resized image."""
        height, width = self.image_size
        return height * width * self.channels

    def decode(self, image: str | Path | bytes | np.ndarray) -> np.ndarray:
        """Decodes an image and converts it to `channels`; turns it upright by its EXIF orientation.

        For 1 channel, colour becomes grey with the ITU-R 601-2 luma weights. For 1 or 3 channels,
        an alpha channel (the fourth of an array) is dropped and not blended with a background, and
        palettes and CMYK are converted. For any other number, the image must have exactly this many
        channels.

        Args:
            image: path of an image file, or its bytes, or an array (h, w) or (h, w, c) of any real
                dtype; see `open_image` for the formats.

        Returns:
            uint8 (h, w, channels). If the image already is such an array, the same object.

        Raises:
            DataUnavailableError: the package that reads such files is not installed.
            UserError: the file cannot be read (the message names its path), the image is damaged or
                of an unknown kind, it does not have the model's channels, or it holds several
                frames and `frame` is `ALL_FRAMES`.
        """
        if isinstance(image, str | Path):
            return self._decode_file(Path(image))
        if isinstance(image, np.ndarray) and image.dtype == np.uint8:
            if image.ndim == 3 and image.shape[2] == self.channels and image.size:
                return image
        frame = self.frame
        if frame == ALL_FRAMES:
            # Labelled images are single frames (`all_frames`), so the caller passed this
            # file directly.
            if isinstance(image, bytes) and (frames := parsed(image).count_frames()) > 1:
                raise UserError(
                    f"the file holds {frames} frames, and by data.frame each frame is a separate"
                    " image: divide the file by medmamba_jax.data.sources.frames.all_frames"
                )
            frame = 0
        opened = open_image(image, window=self.window, frame=frame, max_pixels=self.max_pixels)
        if self.channels in _MODES and isinstance(opened, Image.Image):
            mode = _MODES[self.channels]
            return from_planes([opened if opened.mode == mode else opened.convert(mode)])
        pixels = np.atleast_3d(np.asarray(opened))
        if pixels.shape[2] != self.channels:
            hint = channels_first(pixels.shape)
            raise UserError(
                f"the image has {pixels.shape[2]} channels, the model reads {self.channels}"
                f" (model.in_channels): set that to {pixels.shape[2]}, or save the image as .npy"
                f" (h, w, {self.channels}){hint and f'; {hint}'}"
            )
        return pixels

    def _decode_file(self, path: Path) -> np.ndarray:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the image file {path}: {error.strerror}") from error
        try:
            return self.decode(content)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error

    def resize(self, pixels: np.ndarray, transform: Transform = unchanged) -> np.ndarray:
        """Transforms a decoded image and resizes it to `image_size`, all channels in the same way.

        With the fit "stretch" it does not preserve the aspect ratio. "pad" scales the whole image
        into `image_size`, centres it and makes the rest black. "crop" cuts the largest rectangle of
        the aspect ratio of `image_size` out of the centre and scales that. Where a margin cannot be
        halved, the right or the bottom one is larger.

        Args:
            pixels: uint8 (h, w, channels), as `decode` returns them.
            transform: runs first, at the image's own size.

        Returns:
            uint8 (*image_size, channels). If nothing has to change, the same object.
        """
        if transform is unchanged and pixels.shape[:2] == self.image_size:
            return pixels
        return from_planes([self._fitted(transform(plane)) for plane in to_planes(pixels)])

    def unresize(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Brings values that belong to the pixels of a resized image back to the image itself.

        Args:
            values: float32 (*image_size), such as a heat map.
            size: (height, width) of the image before `resize`.

        Returns:
            float32 (*size), interpolated; NaN where the fit "crop" cut the image off.
        """
        height, width = size
        seen, place = self._boxes(width, height)
        part = Image.fromarray(np.asarray(values, np.float32)).crop(place)
        resized = part.resize((seen[2] - seen[0], seen[3] - seen[1]), Image.Resampling.BILINEAR)
        whole = np.full(size, np.nan, np.float32)
        whole[seen[1] : seen[3], seen[0] : seen[2]] = np.asarray(resized)
        return whole

    def _fitted(self, plane: Image.Image) -> Image.Image:
        height, width = self.image_size
        seen, place = self._boxes(plane.width, plane.height)
        size = (place[2] - place[0], place[3] - place[1])
        if seen != (0, 0, plane.width, plane.height):
            plane = plane.crop(seen)
        plane = plane.resize(size, RESIZE_FILTERS[self.resize_filter])
        if size == (width, height):
            return plane
        padded = Image.new(plane.mode, (width, height))
        padded.paste(plane, place[:2])
        return padded

    def _boxes(self, own_width: int, own_height: int) -> tuple[_Box, _Box]:
        """Returns which part of an image is kept, and where that is in the resized image."""
        height, width = self.image_size
        seen, place = (0, 0, own_width, own_height), (0, 0, width, height)
        if self.fit == "crop":
            scale = min(own_width / width, own_height / height)
            kept = (_scaled(width, scale, own_width), _scaled(height, scale, own_height))
            seen = _centred(kept, (own_width, own_height))
        elif self.fit == "pad":
            scale = min(width / own_width, height / own_height)
            size = (_scaled(own_width, scale, width), _scaled(own_height, scale, height))
            place = _centred(size, (width, height))
        return seen, place


def _centred(size: tuple[int, int], inside: tuple[int, int]) -> _Box:
    left, top = (inside[0] - size[0]) // 2, (inside[1] - size[1]) // 2
    return left, top, left + size[0], top + size[1]


def _scaled(length: int, scale: float, most: int) -> int:
    return min(max(round(length * scale), 1), most)
