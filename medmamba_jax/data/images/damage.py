"""Raises the same kind of error for every damaged image file."""

import contextlib
import struct
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from medmamba_jax.data.images.signatures import is_tiff
from medmamba_jax.errors import UserError

_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError),
    struct.error,
)


class NoSuchFrameError(UserError):
    """A file has fewer frames than `data.frame` needs."""

    def __init__(self, frame: int, frames: int):
        super().__init__(f"frame {frame} was asked for by data.frame, but there are {frames}")


@contextlib.contextmanager
def explained_damage(content: bytes) -> Iterator[None]:
    """Turns any exception of a decoder for a damaged file into a UserError.

    Args:
        content: the bytes of the file.

    Raises:
        UserError: the file is damaged, of an unknown kind, or too large.
    """
    try:
        yield
    except NoSuchFrameError:
        raise
    except UnidentifiedImageError as error:
        if is_tiff(content):
            raise UserError(
                "a TIFF of a kind that cannot be read: save it as grey or RGB of 8 or 16 bits, or"
                " as .npy"
            ) from error
        raise UserError(f"not an image file ({len(content)} bytes)") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"the image is too large to be decoded safely: {error}") from error
    except _DAMAGE as error:
        raise UserError(f"not a complete image file ({len(content)} bytes): {error}") from error
