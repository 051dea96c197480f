"""What tells an image from another, and one that is nearly the same."""

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.dataset import Split
from medmamba_jax.data.images.dicom import DicomFile, is_dicom
from medmamba_jax.data.sources.frames import AllFrames

Decode = Callable[[bytes | np.ndarray], np.ndarray]

_HASH_WIDTH, _HASH_HEIGHT = 17, 16
_MOST_BITS_APART = 10
_LEAST_CORRELATION = 0.98
_BLOCK = 256
_NO_DICOM = -1


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """Of n decoded images.

    Attributes:
        sha256: of the pixels (n,); "" where an image could not be decoded.
        sizes: (width, height) in pixels (n, 2).
        dhashes: 256 bits each, uint64 (n, 4).
        thumbnails: 17 x 16 pixels of mean 0 and norm 1, float32 (n, 272).
        windows: whether a DICOM file says the window of the frame (n,): 1 or 0; -1 of other images.
        problems: row -> why it could not be decoded.
    """

    sha256: np.ndarray
    sizes: np.ndarray
    dhashes: np.ndarray
    thumbnails: np.ndarray
    windows: np.ndarray
    problems: dict[int, str]


def fingerprint(split: Split, decode: Decode, frame: int = 0) -> Fingerprints:
    """Decodes every image of a split once, in as many threads as there are CPUs.

    Args:
        split: the images.
        decode: to uint8 (h, w, c), as for the model; raises UserError for a damaged image.
        frame: which one of a file with several `decode` reads.
    """
    rows = range(len(split))
    with ThreadPoolExecutor(usable_cpus()) as pool:
        found = list(pool.map(lambda row: _of_image(split, row, decode, frame), rows))
    problems = {row: result for row, result in enumerate(found) if isinstance(result, str)}
    thumbnail = np.zeros(_HASH_WIDTH * _HASH_HEIGHT, np.float32)
    blank = ("", (0, 0), np.zeros(4, np.uint64), thumbnail, _NO_DICOM)
    sha256, sizes, dhashes, thumbnails, windows = zip(
        *(blank if isinstance(result, str) else result for result in found), strict=True
    )
    return Fingerprints(
        np.array(sha256),
        np.array(sizes),
        np.array(dhashes),
        np.array(thumbnails),
        np.array(windows),
        problems,
    )


def near_pairs(one: Fingerprints, other: Fingerprints) -> np.ndarray:
    """Finds pairs that show nearly the same pixels: compressed, scaled or brightened again.

    At most 10 of the 256 bits of their difference hashes differ, and their thumbnails correlate
    by 0.98 or more. Of 2,948 chest X-rays, which all look alike, no two others come nearer than 17
    bits, and JPEG at quality 30, half the size or 1.2 times the brightness leave 95 % within 7. (A
    difference hash of 64 bits is equal for hundreds of pairs of them.) A cut edge, or a mirror
    image, is not found.

    Args:
        one, other: n and m images.

    Returns:
        Rows of `one` and of `other` (pairs, 2), in ascending order. Images that could not be
        decoded, or that are equal, pixel for pixel, are left out.
    """
    pairs = [np.empty((0, 2), np.int64)]
    for start in range(0, len(one.dhashes), _BLOCK):
        block = one.dhashes[start : start + _BLOCK]
        apart = np.zeros((len(block), len(other.dhashes)), np.uint16)
        for word in range(block.shape[1]):
            apart += np.bitwise_count(block[:, word, None] ^ other.dhashes[:, word])
        near = apart <= _MOST_BITS_APART
        rows = np.flatnonzero(near.any(1))
        near = near[rows]
        rows += start
        near &= one.thumbnails[rows] @ other.thumbnails.T >= _LEAST_CORRELATION
        first, second = np.nonzero(near)
        first = rows[first]
        unequal = one.sha256[first] != other.sha256[second]
        pairs.append(np.column_stack([first, second])[unequal])
    return np.concatenate(pairs)


def _of_image(split: Split, row: int, decode: Decode, frame: int):
    """Returns sha256, size, dhash, thumbnail and window; or what is wrong, as text."""
    try:
        image = split[row]["image"]
        pixels = np.ascontiguousarray(decode(image))
        window = _has_window(split, row, image, frame)
    except (OSError, ValueError) as error:
        return str(error)
    identity = hashlib.sha256(f"{pixels.shape} ".encode())
    identity.update(pixels.data)
    grey = pixels.mean(2, dtype=np.float32)
    small = Image.fromarray(grey).resize((_HASH_WIDTH, _HASH_HEIGHT), Image.Resampling.BOX)
    thumbnail = np.asarray(small)
    dhash = np.packbits(thumbnail[:, 1:] > thumbnail[:, :-1]).view(np.uint64)
    thumbnail = thumbnail.ravel() - thumbnail.mean()
    norm = np.linalg.norm(thumbnail)
    window = _NO_DICOM if window is None else int(window)
    return identity.hexdigest(), grey.shape[::-1], dhash, thumbnail / (norm or 1), window


def _has_window(split: Split, row: int, image: bytes | np.ndarray, frame: int) -> bool | None:
    if isinstance(split, AllFrames):
        return split.has_window(row)
    if isinstance(image, bytes) and is_dicom(image):
        return DicomFile(image).has_window(frame)
    return None
