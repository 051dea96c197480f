"""Pairs of images with the same, or nearly the same, pixels; and the table of them."""

import dataclasses
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from absl import logging
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medmamba_jax.data.auditing.fingerprints import Facts
from medmamba_jax.data.csv_table import write_csv_table
from medmamba_jax.data.labelled_images import LabelledImages

Pairs = tuple[np.ndarray, np.ndarray]

_MOST_BITS_APART = 10
_LEAST_CORRELATION = 0.98
_PAIRS_AT_ONCE = 1 << 16  # bounds the memory that comparing takes
_MOST_SHARING = 5_000  # images; a part of a hash that more of them share is not searched
_MOST_PAIRED = 100  # images; of a larger set of equal images each is paired with the first only
_CHAIN = (10, 0.02)  # images, and share of all images, beyond which a chain is not grouped


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Equal and nearly equal images among n.

    Attributes:
        same: a number for each image (n,); images with the same pixels have the same number. An
            image that cannot be decoded has a number of its own.
        near: pairs of rows of nearly equal images (p, 2), in ascending order; see `near_pairs`. Of
            images with the same pixels only the first is paired.
        distances: number of bits in which the hashes of the pairs differ (p,).
    """

    same: np.ndarray
    near: np.ndarray
    distances: np.ndarray

    @classmethod
    def among(cls, facts: Facts) -> "Duplicates":
        """Compares all images with each other."""
        same = np.unique(facts.of["pixels"], axis=0, return_inverse=True)[1].ravel()
        unreadable = np.flatnonzero(~facts.readable)
        same[unreadable] = len(facts) + np.arange(len(unreadable))
        first = np.unique(same, return_index=True)[1]
        # The thumbnail of a uniform or an unreadable image is all zeros: it has no correlation.
        rows = np.sort(first[facts.of["thumbnail"][first].any(1)])
        near, distances = near_pairs(facts.of["dhash"][rows], facts.of["thumbnail"][rows])
        return cls(same, rows[near], distances)

    def take(self, rows: np.ndarray) -> "Duplicates":
        """Returns what is known of these rows, which are in ascending order."""
        # The first of equal images may be gone: any other of them takes its place in a pair.
        _, inverse = np.unique(self.same, return_inverse=True)
        first = np.full(inverse.max(initial=-1) + 1, -1)
        first[inverse[rows[::-1]]] = np.arange(len(rows))[::-1]
        near = first[inverse[self.near]]
        known = (near >= 0).all(1)
        return Duplicates(self.same[rows], np.sort(near[known], axis=1), self.distances[known])

    def sets(self) -> list[np.ndarray]:
        """Returns the rows of each set of equal images."""
        order = np.argsort(self.same, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(self.same[order])) + 1)
        return sorted((part for part in parts if len(part) > 1), key=lambda part: part[0])

    def pairs(self) -> Iterator[tuple[int, int, int]]:
        """Yields each pair of rows and its distance; 0 if the pixels are the same."""
        for rows in self.sets():
            chosen = (
                combinations(rows.tolist(), 2)
                if len(rows) <= _MOST_PAIRED
                else ((int(rows[0]), row) for row in rows[1:].tolist())
            )
            for one, other in chosen:
                yield one, other, 0
        for (one, other), distance in zip(self.near.tolist(), self.distances.tolist(), strict=True):
            yield one, other, distance

    def groups(self, *, near: bool) -> tuple[np.ndarray, list[np.ndarray]]:
        """Numbers the images so that all that should stay in one split have the same number.

        A chain of nearly equal images can connect images that are not alike. If more than ten
        images and two per cent of all hang together, only the equal ones among them are grouped.

        Args:
            near: whether nearly equal images should stay together, or only equal ones.

        Returns:
            The numbers (n,), and the rows of the chains that were left out.
        """
        if not near:
            return self.same, []
        count = len(self.same)
        one, other = self.near.T
        chained = connected(*self._edges(one, other))
        order = np.argsort(chained, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(chained[order])) + 1)
        most = max(_CHAIN[0], _CHAIN[1] * count)
        chains = [part for part in parts if len(part) > most and len(set(self.same[part])) > 1]
        if chains:
            free = np.ones(count, bool)
            free[np.concatenate(chains)] = False
            kept = free[one]
            chained = connected(*self._edges(one[kept], other[kept]))
        return chained, chains

    def _edges(self, one: np.ndarray, other: np.ndarray) -> Pairs:
        """Returns these pairs, and one of each image with the first that is equal to it."""
        _, first, inverse = np.unique(self.same, return_index=True, return_inverse=True)
        every = np.arange(len(self.same))
        return np.concatenate([every, one]), np.concatenate([first[inverse], other])


def connected(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Numbers the parts of a graph with the edges one[i] - other[i]; a number for each vertex."""
    count = int(max(one.max(initial=-1), other.max(initial=-1))) + 1
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def write_duplicates(path: Path, images: LabelledImages, found: Duplicates) -> None:
    """Writes a row for each pair of equal or nearly equal images.

    The columns are path, label and split of both images (`other_path` and so on), and distance: 0
    for the same pixels, otherwise the number of bits in which the hashes differ. Of a set of more
    than 100 equal images, each is paired with the first only.

    Args:
        path: the file; its folder exists.
        images: all images, with their splits.
        found: the pairs of rows.
    """
    columns = ("path", "label", "split")

    def cells(row: int) -> list[str]:
        split = "" if images.splits is None else images.splits[row]
        return [images.names[row], images.label_name(row), split]

    write_csv_table(
        path,
        [*columns, *(f"other_{column}" for column in columns), "distance"],
        ([*cells(one), *cells(other), distance] for one, other, distance in found.pairs()),
    )


def near_pairs(dhashes: np.ndarray, thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds pairs of images that differ only by compression, scale or brightness.

    The difference hashes of a pair differ in at most 10 of 256 bits, and its thumbnails have a
    correlation of 0.98 or more. The limits were tried on 2,948 chest X-rays, which all look alike.
    The hashes of two different X-rays differ in 17 bits or more. If an X-ray is compressed as JPEG
    at quality 30, halved in size, or made 1.2 times as bright, its hash changes by at most 7 bits
    in 95 % of the cases. (A difference hash of 64 bits is equal for hundreds of pairs of different
    X-rays.) The function does not find a cropped or mirrored image.

    The hashes are cut into 11 segments. Ten different bits lie in at most ten of them, so that two
    near hashes agree in at least one segment; only such pairs are compared. A value that more than
    5,000 images share is not searched, because comparing all pairs of these images would take too
    long; a warning says how many images that are.

    Args:
        dhashes: uint64 (n, 4).
        thumbnails: (n, 272), each of norm 1.

    Returns:
        Pairs of rows (p, 2) in ascending order, and the number of bits that differ (p,).
    """
    segments, thumbnails = _segments(dhashes), thumbnails.astype(np.float32)
    found, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    for number, values in enumerate(segments):
        for one, other in _equal_pairs(values):
            for earlier in segments[:number]:  # one that agrees has found the pair already
                new = earlier[one] != earlier[other]
                one, other = one[new], other[new]
            apart = _bits_apart(dhashes[one], dhashes[other])
            near = apart <= _MOST_BITS_APART
            one, other, apart = one[near], other[near], apart[near]
            alike = _correlations(thumbnails, one, other) >= _LEAST_CORRELATION
            pairs = np.column_stack([one[alike], other[alike]])
            found.append(np.sort(pairs, axis=1))
            distances.append(apart[alike])
    pairs, apart = np.concatenate(found), np.concatenate(distances)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], apart[order]


def _correlations(thumbnails: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(one), _PAIRS_AT_ONCE // 8):
        part = slice(start, start + _PAIRS_AT_ONCE // 8)
        a, b = thumbnails[one[part]], thumbnails[other[part]]
        parts.append(np.einsum("ij,ij->i", a, b))
    return np.concatenate(parts)


def _segments(dhashes: np.ndarray) -> list[np.ndarray]:
    """Cuts hashes, uint64 (n, 4), into 11 segments of 23 or 24 bits, each int64 (n,).

    A segment takes every eleventh bit. Neighbouring bits are often alike, so a segment of
    neighbours would be the same in many images. Values that too many images share become negative
    and different from all others.
    """
    bits = np.unpackbits(np.ascontiguousarray(dhashes).view(np.uint8).reshape(-1, 32), axis=1)
    count = _MOST_BITS_APART + 1
    segments, crowded = [], np.zeros(len(bits), bool)
    for start in range(count):
        part = bits[:, start::count].astype(np.int64)
        values = part @ (1 << np.arange(part.shape[1]))
        _, inverse, sharing = np.unique(values, return_inverse=True, return_counts=True)
        many = sharing[inverse] > _MOST_SHARING
        values[many] = -1 - np.flatnonzero(many)
        segments.append(values)
        crowded |= many
    if crowded.any():
        logging.warning(
            "%d of %d images are not compared with all others for nearly the same pixels, because"
            " more than %d look alike (they share a part of their hashes): such pairs may be"
            " missing",
            crowded.sum(),
            len(crowded),
            _MOST_SHARING,
        )
    return segments


def _equal_pairs(values: np.ndarray) -> Iterator[Pairs]:
    """Yields all pairs of rows with equal values, about `_PAIRS_AT_ONCE` at a time."""
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    ends = np.r_[begins[1:], len(order)]
    # Each place is paired with all later ones of its run.
    later = np.repeat(ends, ends - begins) - np.arange(len(order)) - 1
    total = np.cumsum(later)
    cuts = np.searchsorted(total, np.arange(_PAIRS_AT_ONCE, total[-1], _PAIRS_AT_ONCE))
    for places in np.split(np.arange(len(order)), cuts):
        counts = later[places]
        first = np.repeat(places, counts)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield order[first], order[second]


def _bits_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Counts the bits in which hashes, uint64 (n, 4), differ."""
    apart = np.zeros(len(one), np.int64)
    for word in range(one.shape[1]):  # NumPy's own sum over a short axis takes ten times as long
        apart += np.bitwise_count(one[:, word] ^ other[:, word])
    return apart
