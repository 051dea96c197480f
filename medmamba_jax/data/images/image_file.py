"""What all readers of image files share."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from medmamba_jax.data.images.windowing import Window, to_uint8
from medmamba_jax.data.texts import one_line
from medmamba_jax.errors import DataUnavailableError, UserError

MAX_PIXELS = 80_000_000  # the default of `data.max_pixels`; Pillow warns from 89 million on
LARGEST_UNPACKED = 1 << 32  # bytes of a compressed file, with all its frames

_MAKE_SMALLER = (
    "save it smaller, cut it into tiles, or set data.max_pixels higher if you trust it and the"
    " memory suffices"
)

Range = tuple[float, float]
Picture = Image.Image | np.ndarray  # the pixels of one frame in 8 bits

# EXIF orientation -> whether to swap the axes first, then flip the rows, then the columns.
_TURNS = {
    **{1: (0, 0, 0), 2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0)},
    **{5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)},
}


class NoSuchFrameError(UserError):
    """A file has fewer frames than `data.frame` needs."""

    def __init__(self, frame: int, frames: int):
        allowed = f"0 to {frames - 1}" if frames > 1 else "0"
        super().__init__(
            f"frame {frame} was asked for by data.frame, but there are {frames}: choose {allowed}"
        )


class ImageFile:
    """An image whose header was read. Threads may share it.

    Each format has a subclass, which overrides the methods with an underscore. They may raise
    anything at a damaged file: the public methods, and `decoding.parsed`, turn it into a UserError.

    Args:
        content: the bytes of the file, or an array.

    Attributes:
        expected: what the file should be; the message for a damaged file says that it is not.
    """

    expected = "a complete image file"

    def __init__(self, content: bytes | np.ndarray):
        self.content: Any = content
        self._lock = threading.RLock()  # for a library that moves through the file

    def kind(self) -> str:
        """Returns format, depth and channels, such as "PNG, 16-bit grey", from the header.

        Raises:
            DataUnavailableError: the package that reads this format is not installed.
            UserError: the header is damaged.
        """
        with explained_damage(self.expected):
            return one_line(self._kind())  # a header may hold any text

    def count_frames(self) -> int:
        """Returns the number of frames, without decoding any of them; raises as `kind` does."""
        with explained_damage(self.expected):
            return self._frames()

    def read(self, *, window: Window, frame: int, max_pixels: int = MAX_PIXELS) -> Picture:
        """Decodes a frame and converts it to 8 bits; see `decoding.open_image`."""
        with explained_damage(self.expected):
            if frame and frame >= (frames := self._frames()):
                raise NoSuchFrameError(frame, frames)
            return self._read(window, frame, max_pixels)

    def _kind(self) -> str:
        raise NotImplementedError

    def _frames(self) -> int:
        return 1

    def _read(self, window: Window, frame: int, max_pixels: int) -> Picture:
        """Decodes a frame. It calls `require_size` before it decodes any pixel."""
        raise NotImplementedError


@contextlib.contextmanager
def explained_damage(what: str = "a complete image file") -> Iterator[None]:
    """Turns any exception of a decoder into a UserError: damage can make it raise anything.

    Args:
        what: what the file should be; the message says that it is not.

    Raises:
        DataUnavailableError: the decoder is not installed.
        UserError: the file is damaged, of an unknown kind, or too large.
    """
    try:
        yield
    except (UserError, DataUnavailableError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"the image is too large ({str(error).rstrip('.')}): {_MAKE_SMALLER}"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(f"not {what}: the header is damaged") from error
    except Exception as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"not {what}: {problem}") from error


def require_size(height: int, width: int, max_pixels: int) -> None:
    """Raises UserError for an image of more pixels than `data.max_pixels` allows."""
    if height * width > max_pixels:
        raise UserError(
            f"the image is too large ({width} x {height} pixels, and data.max_pixels allows"
            f" {max_pixels}): {_MAKE_SMALLER}"
        )


def raise_limit_of_pillow(max_pixels: int) -> None:
    """Lets Pillow open and crop images of so many pixels, in this process.

    Pillow warns of images with more pixels than its own limit, and refuses those with more than
    twice as many. This function never lowers that limit. A larger `data.max_pixels` raises it.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and max_pixels > limit:
        Image.MAX_IMAGE_PIXELS = max_pixels


def require_modest(size: int, what: str) -> None:
    """Raises UserError for a file that unpacks to more than `LARGEST_UNPACKED` bytes."""
    if size > LARGEST_UNPACKED:
        raise UserError(
            f"{what} unpacks to more than {LARGEST_UNPACKED:,} bytes: unpack it yourself if you"
            " trust it, or save its frames as files"
        )


def require_end(jpeg: bytes) -> None:
    """Raises UserError for a JPEG that is cut off, which imagecodecs would fill up with grey."""
    if b"\xff\xd9" not in jpeg[jpeg.rfind(b"\xff\xda") :]:
        raise UserError("not a complete image file: the end of the JPEG is missing")


def require_exact_jpeg2000(bits: int) -> None:
    """Raises UserError for a JPEG 2000 of so many bits that OpenJPEG rounds them."""
    if bits > 24:
        raise UserError(f"JPEG 2000 of {bits} bits cannot be read exactly: save it as .npy")


def integer_range(bits: int, *, signed: bool = False) -> Range:
    """Returns the smallest and the largest integer of so many bits."""
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)


def rendered(
    values: np.ndarray,
    window: Window,
    *,
    full: Range | None = None,
    alpha: bool = False,
    inverted: bool = False,
    orientation: int = 1,
) -> Picture:
    """Converts decoded values to 8 bits and turns them upright. All colours share one window.

    Args:
        values: (h, w) or (h, w, c), of any real dtype.
        window: which intensities become 0..255, see `to_uint8`. Integers of 8 bits and fewer have
            no window: their whole range becomes 0..255.
        full: the range of the values, if it is not that of their dtype.
        alpha: whether the last channel is alpha. It has no window.
        inverted: whether the smallest value is white.
        orientation: the EXIF orientation.

    Returns:
        A Pillow image of mode L, LA, RGB or RGBA, or uint8 (h, w, c) with another number of
        channels.
    """
    if full and values.dtype == np.uint8 and full != integer_range(8):
        values, window = values.astype(np.uint16), "full"
    window, whole = (full, full) if full and window == "full" else (window, full or "full")
    colours = values[..., :-1] if alpha else values
    pixels = to_uint8(colours, window)
    pixels = 255 - pixels if inverted else pixels
    if alpha:
        pixels = np.concatenate([pixels, to_uint8(values[..., -1:], whole)], axis=-1)
    swap, *flips = _TURNS.get(orientation, _TURNS[1])
    pixels = pixels.swapaxes(0, 1) if swap else pixels
    pixels = pixels[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    pixels = np.ascontiguousarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4) and not alpha:
        return pixels
    return Image.fromarray(pixels)
