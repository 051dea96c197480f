"""Fingerprints of images: equal pixels give equal ones, nearly equal pixels give near ones."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.images.dicom import DicomFile, is_dicom
from medmamba_jax.data.labelled_images import LabelledImages

Pairs = tuple[np.ndarray, np.ndarray]  # rows of one set of images, and of another
Decode = Callable[[bytes | np.ndarray], np.ndarray]

_HASH_WIDTH, _HASH_HEIGHT = 17, 16
_MOST_BITS_APART = 10
_LEAST_CORRELATION = 0.98
_BLOCK = 256  # images that are compared with all others at once
_PAIRS_AT_ONCE = 1 << 16  # bounds the memory that comparing takes
_ROUNDING = 1e-3  # more than the rounding error of a correlation in float32
_CANDIDATE_COST = 8  # cost of a pair of candidates, in units of a pair in `_compared_with_all`
_NO_DICOM = -1


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of n images.

    Attributes:
        sha256: SHA-256 of the pixels (n,); "" where an image could not be decoded.
        sizes: (width, height) in pixels (n, 2).
        dhashes: difference hashes of 256 bits, uint64 (n, 4).
        thumbnails: 17 x 16 pixels of mean 0 and norm 1, float32 (n, 272).
        windows: 1 where a DICOM file contains the window of the frame, 0 where it does not, -1 for
            other images (n,).
        problems: row -> why the image could not be decoded.
    """

    sha256: np.ndarray
    sizes: np.ndarray
    dhashes: np.ndarray
    thumbnails: np.ndarray
    windows: np.ndarray
    problems: dict[int, str]

    def take(self, rows: np.ndarray) -> "Fingerprints":
        """Returns the fingerprints of these rows. All of their images must be readable."""
        return Fingerprints(
            self.sha256[rows],
            self.sizes[rows],
            self.dhashes[rows],
            self.thumbnails[rows],
            self.windows[rows],
            problems={},
        )


def fingerprint(split: LabelledImages, decode: Decode, frame: int = 0) -> Fingerprints:
    """Decodes every image of a split once, in as many threads as there are CPUs.

    Args:
        split: the images.
        decode: decodes an image to uint8 (h, w, c), as for the model. It raises UserError for a
            damaged image.
        frame: the frame that `decode` reads from a file with several frames.
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
    """Finds pairs of images that differ only by compression, scale or brightness.

    The difference hashes of a pair differ in at most 10 of 256 bits, and its thumbnails have a
    correlation of 0.98 or more. The limits were tried on 2,948 chest X-rays, which all look alike.
    The hashes of two different X-rays differ in 17 bits or more. If an X-ray is compressed as JPEG
    at quality 30, halved in size, or made 1.2 times as bright, its hash changes by at most 7 bits
    in 95 % of the cases. (A difference hash of 64 bits is equal for hundreds of pairs of different
    X-rays.) The function does not find a cropped or mirrored image.

    Args:
        one, other: fingerprints of n and m images.

    Returns:
        Rows of `one` and of `other` (pairs, 2), in ascending order. They do not include images that
        could not be decoded, or pairs with the same pixels.
    """
    # The thumbnail of a uniform or an unreadable image is all zeros: it has no correlation.
    rows, other_rows = (np.flatnonzero(prints.thumbnails.any(1)) for prints in (one, other))
    one, other = one.take(rows), other.take(other_rows)
    candidates = _near_hashes(one.dhashes, other.dhashes) or _compared_with_all(one, other)
    pairs = [np.empty((0, 2), np.int64)]
    for first, second in candidates:
        unequal = one.sha256[first] != other.sha256[second]
        first, second = first[unequal], second[unequal]
        alike = _correlations(one.thumbnails, other.thumbnails, first, second)
        kept = alike >= _LEAST_CORRELATION
        pairs.append(np.column_stack([rows[first[kept]], other_rows[second[kept]]]))
    found = np.concatenate(pairs)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def _correlations(
    one: np.ndarray, other: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Returns the correlation of thumbnails `one[first]` and `other[second]`, float64 (pairs,)."""
    parts = [np.empty(0)]
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        at_once = slice(start, start + _PAIRS_AT_ONCE)
        a, b = one[first[at_once]], other[second[at_once]]
        parts.append(np.einsum("ij,ij->i", a, b, dtype=np.float64))
    return np.concatenate(parts)


def _near_hashes(one: np.ndarray, other: np.ndarray) -> Iterator[Pairs] | None:
    """Finds pairs of hashes that differ in at most 10 bits, each pair once.

    It cuts each hash into 11 segments. Ten different bits lie in at most ten segments, so two near
    hashes agree in at least one segment. The function compares only such pairs.

    Args:
        one, other: uint64 (n, 4) and (m, 4).

    Returns:
        Rows of `one` and of `other`, in parts. None if so many hashes agree in a segment that it is
        faster to compare all pairs.
    """
    segments = list(zip(_segments(one), _segments(other), strict=True))
    orders = [np.argsort(values) for _, values in segments]
    places = [  # for each row of `one`: where the equal segments begin and end in the order
        [np.searchsorted(other_values[order], values, side) for side in ("left", "right")]
        for (values, other_values), order in zip(segments, orders, strict=True)
    ]
    candidates = sum(int((end - begin).sum()) for begin, end in places)
    if candidates * _CANDIDATE_COST > len(one) * len(other):
        return None

    def found() -> Iterator[Pairs]:
        for number, (order, (begin, end)) in enumerate(zip(orders, places, strict=True)):
            for rows in _in_parts(end - begin):
                counts = (end - begin)[rows]
                first = np.repeat(rows, counts)
                within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
                second = order[np.repeat(begin[rows], counts) + within]
                near = _bits_apart(one[first], other[second]) <= _MOST_BITS_APART
                first, second = first[near], second[near]
                # The loop has already returned the pairs that also agree in an earlier segment.
                new = np.ones(len(first), bool)
                for values, other_values in segments[:number]:
                    new &= values[first] != other_values[second]
                yield first[new], second[new]

    return found()


def _compared_with_all(one: Fingerprints, other: Fingerprints) -> Iterator[Pairs]:
    """Finds the pairs of `_near_hashes`, without those of clearly different thumbnails."""
    for start in range(0, len(one.dhashes), _BLOCK):
        block = slice(start, start + _BLOCK)
        near = _bits_apart(one.dhashes[block, None], other.dhashes) <= _MOST_BITS_APART
        rows = np.flatnonzero(near.any(1))
        alike = one.thumbnails[block][rows] @ other.thumbnails.T
        first, second = np.nonzero(near[rows] & (alike >= _LEAST_CORRELATION - _ROUNDING))
        yield start + rows[first], second


def _segments(dhashes: np.ndarray) -> list[np.ndarray]:
    """Cuts hashes, uint64 (n, 4), into 11 segments of 23 or 24 bits, each uint32 (n,).

    A segment takes every eleventh bit. Neighbouring bits are often alike, so a segment of
    neighbours would be the same in many images.
    """
    bits = np.unpackbits(np.ascontiguousarray(dhashes).view(np.uint8).reshape(-1, 32), axis=1)
    count = _MOST_BITS_APART + 1
    parts = [bits[:, start::count].astype(np.uint32) for start in range(count)]
    return [part @ (1 << np.arange(part.shape[1], dtype=np.uint32)) for part in parts]


def _in_parts(counts: np.ndarray) -> list[np.ndarray]:
    """Divides rows into consecutive parts of about `_PAIRS_AT_ONCE` candidates.

    Args:
        counts: number of candidates for each row, (n,).
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(_PAIRS_AT_ONCE, total, _PAIRS_AT_ONCE))
    return np.split(np.arange(len(counts)), cuts)


def _bits_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Counts the bits in which hashes differ, uint16. The last axis of both holds four words."""
    apart = np.bitwise_count(one[..., 0] ^ other[..., 0]).astype(np.uint16)
    for word in range(1, one.shape[-1]):
        apart += np.bitwise_count(one[..., word] ^ other[..., word])
    return apart


def _of_image(split: LabelledImages, row: int, decode: Decode, frame: int) -> tuple[Any, ...] | str:
    """Returns sha256, size, dhash, thumbnail and window; or the error message."""
    try:
        image = split.read(row)
        pixels = np.ascontiguousarray(decode(image))
        window = _has_window(image, frame)
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
    known = _NO_DICOM if window is None else int(window)
    return identity.hexdigest(), grey.shape[::-1], dhash, thumbnail / (norm or 1), known


def _has_window(image: bytes | np.ndarray, frame: int) -> bool | None:
    if isinstance(image, bytes) and is_dicom(image):
        return DicomFile(image).has_window(frame)
    return None
