"""Facts of single images: equal pixels give equal fingerprints, nearly equal ones near ones."""

import dataclasses
import hashlib

import numpy as np
from PIL import Image

_HASH_WIDTH, _HASH_HEIGHT = 17, 16

# content: hash of the image as its source has it, see `content_hash`. pixels: hash of the decoded
# pixels. size: width and height. dhash: difference hash of 256 bits. thumbnail: 17 x 16 pixels of
# mean 0 and norm 1.
FACT = np.dtype(
    [
        ("content", np.uint8, 32),
        ("pixels", np.uint64, 2),
        ("size", np.int32, 2),
        ("dhash", np.uint64, 4),
        ("thumbnail", np.float16, _HASH_WIDTH * _HASH_HEIGHT),
    ]
)


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts of n images.

    Attributes:
        of: an entry of dtype `FACT` for each image (n,); only "content" is known of an image that
            cannot be decoded.
        problems: row -> why the image cannot be decoded.
    """

    of: np.ndarray
    problems: dict[int, str]

    def __len__(self) -> int:
        return len(self.of)

    @property
    def readable(self) -> np.ndarray:
        """Which images can be decoded, bool (n,)."""
        readable = np.ones(len(self), bool)
        readable[list(self.problems)] = False
        return readable


def blank_fact(content: bytes) -> np.ndarray:
    """Returns the facts of an image of which only the content hash is known."""
    fact = np.zeros((), FACT)
    fact["content"] = np.frombuffer(content, np.uint8)
    return fact


def fact_of(content: bytes, pixels: np.ndarray) -> np.ndarray:
    """Returns the facts of an image.

    Args:
        content: its content hash.
        pixels: the decoded image, uint8 (h, w, c).
    """
    pixels = np.ascontiguousarray(pixels)
    identity = hashlib.sha256(f"{pixels.shape} ".encode())
    identity.update(pixels.data)
    # The sum of the channels. NumPy's own sum over a short last axis takes ten times as long.
    grey = pixels[..., 0].astype(np.float32)
    for channel in range(1, pixels.shape[2]):
        grey += pixels[..., channel]
    small = Image.fromarray(grey).resize((_HASH_WIDTH, _HASH_HEIGHT), Image.Resampling.BOX)
    thumbnail = np.asarray(small)
    dhash = np.packbits(thumbnail[:, 1:] > thumbnail[:, :-1]).view(np.uint64)
    thumbnail = thumbnail.ravel() - thumbnail.mean()
    norm = np.linalg.norm(thumbnail)
    fact = blank_fact(content)
    fact["pixels"] = np.frombuffer(identity.digest()[:16], np.uint64)
    fact["size"] = grey.shape[::-1]
    fact["dhash"] = dhash
    fact["thumbnail"] = thumbnail / (norm or 1)
    return fact
