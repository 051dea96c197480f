"""Near-duplicates, compared with a search that compares each image with each."""

import tracemalloc

import numpy as np
import pytest

from medmamba_jax.data.auditing.fingerprints import Fingerprints, near_pairs

THUMBNAIL = 272  # pixels
BITS = 256
FIELDS = ("sha256", "sizes", "dhashes", "thumbnails", "windows")


def prints(hashes, thumbnails, name):
    """Fingerprints of decoded images, no two of which are equal."""
    count = len(hashes)
    thumbnails = thumbnails / np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 1e-9)
    return Fingerprints(
        sha256=np.array([f"{name}{row}" for row in range(count)]),
        sizes=np.full((count, 2), 64),
        dhashes=hashes,
        thumbnails=thumbnails.astype(np.float32),
        windows=np.full(count, -1),
        problems={},
    )


def slow(one, other):
    """Pairs of rows by comparing each with each, bit by bit."""
    bits = [
        np.unpackbits(p.dhashes.view(np.uint8).reshape(-1, 32), axis=1).astype(np.int32)
        for p in (one, other)
    ]
    apart = bits[0] @ (1 - bits[1]).T + (1 - bits[0]) @ bits[1].T
    alike = one.thumbnails.astype(np.float64) @ other.thumbnails.T.astype(np.float64)
    near = (apart <= 10) & (alike >= 0.98) & (one.sha256[:, None] != other.sha256)
    return np.argwhere(near)


def flip(hashes, row, bits):
    """Changes bits of one hash in place."""
    for bit in bits:
        hashes[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)


def random_hashes(count, rng):
    return rng.integers(0, 2**64, (count, 4), np.uint64)


def random_prints(counts, rng):
    """Two sets; a third of the first has a copy in the second with 0 to 13 bits changed."""
    hashes = [random_hashes(count, rng) for count in counts]
    thumbnails = [rng.standard_normal((count, THUMBNAIL)) for count in counts]
    for row in range(min(counts) // 3):
        copy = counts[1] - 1 - row
        hashes[1][copy] = hashes[0][row]
        flip(hashes[1], copy, rng.choice(BITS, row % 14, replace=False))
        noise = (0.05, 0.19, 0.21, 0.6)[row % 4]
        thumbnails[1][copy] = thumbnails[0][row] + noise * rng.standard_normal(THUMBNAIL)
    return [prints(*parts) for parts in zip(hashes, thumbnails, "ab", strict=True)]


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (1, 1), (40, 300), (300, 40), (900, 1000)])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_hashes(counts, seed):
    one, other = random_prints(counts, np.random.default_rng(seed))
    found = near_pairs(one, other)
    np.testing.assert_array_equal(found, slow(one, other))
    assert len(found) or min(counts) < 10


def test_ten_bits_wherever_they_are():
    """The bits that differ are spread over as many of the segments as possible, or lie together."""
    rng = np.random.default_rng(0)
    changes = [range(start, start + 10) for start in range(0, BITS - 10)]
    changes += [range(start, BITS, 11)[:10] for start in range(11)]
    changes += [rng.choice(BITS, 10, replace=False) for _ in range(300)]
    hashes = random_hashes(len(changes), rng)
    thumbnails = rng.standard_normal((len(changes), THUMBNAIL))
    ten, eleven = hashes.copy(), hashes.copy()
    for row, bits in enumerate(changes):
        flip(ten, row, bits)
        more = next(bit for bit in range(BITS) if bit not in bits)
        flip(eleven, row, [*bits, more])
    one = prints(hashes, thumbnails, "a")
    rows = np.arange(len(changes))
    found = near_pairs(one, prints(ten, thumbnails, "b"))
    np.testing.assert_array_equal(found, np.column_stack([rows, rows]))
    assert not len(near_pairs(one, prints(eleven, thumbnails, "b")))


@pytest.mark.parametrize("kind", ["all equal", "five", "a common part", "within ten bits"])
def test_hashes_that_agree_in_many_segments(kind):
    rng = np.random.default_rng(0)
    base = random_hashes(1, rng)
    if kind == "all equal":
        hashes = [np.repeat(base, count, axis=0) for count in (300, 400)]
    elif kind == "five":
        five = random_hashes(5, rng)
        hashes = [five[rng.integers(0, 5, count)] for count in (300, 400)]
    elif kind == "a common part":
        hashes = [random_hashes(count, rng) for count in (300, 400)]
        for each in hashes:
            each[:, :3] = base[:, :3]
            each[:, 3] &= np.uint64(0xFFFF)
    else:
        hashes = [np.repeat(base, count, axis=0) for count in (300, 400)]
        for each in hashes:
            for row in range(len(each)):
                flip(each, row, rng.choice(BITS, rng.integers(0, 8), replace=False))
    shown = rng.standard_normal((20, THUMBNAIL))
    thumbnails = [shown[np.arange(len(each)) % 20] for each in hashes]
    thumbnails = [each + 0.1 * rng.standard_normal(each.shape) for each in thumbnails]
    one, other = (prints(*parts) for parts in zip(hashes, thumbnails, "ab", strict=True))
    found = near_pairs(one, other)
    np.testing.assert_array_equal(found, slow(one, other))
    assert len(found) > 50


def test_equal_pixels_are_left_out():
    one, other = random_prints((60, 60), np.random.default_rng(0))
    found = near_pairs(one, other)
    first, second = found[0]
    other.sha256[second] = one.sha256[first]
    np.testing.assert_array_equal(near_pairs(one, other), found[1:])


def test_blank_and_unreadable_images_are_near_to_none():
    one, other = random_prints((60, 60), np.random.default_rng(0))
    expected = near_pairs(one, other)
    blank = prints(np.zeros((200, 4), np.uint64), np.zeros((200, THUMBNAIL)), "c")
    both = [
        Fingerprints(
            *(np.concatenate([getattr(p, f), getattr(blank, f)]) for f in FIELDS), problems={}
        )
        for p in (one, other)
    ]
    np.testing.assert_array_equal(near_pairs(*both), expected)


def test_thousands_of_equal_hashes_take_little_memory():
    """All pairs of their rows would take 400 MB."""
    rng = np.random.default_rng(0)
    hashes = np.repeat(random_hashes(1, rng), 5000, axis=0)
    one, other = (prints(hashes, rng.standard_normal((5000, THUMBNAIL)), name) for name in "ab")
    tracemalloc.start()
    found = near_pairs(one, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not len(found) and peak < 100e6
