"""Equal and nearly equal images, compared with a search that compares each image with each."""

import csv
import tracemalloc

import numpy as np
import pytest

from medmamba_jax.data import LabelledImages
from medmamba_jax.data.auditing import duplicates
from medmamba_jax.data.auditing.duplicates import Duplicates, near_pairs, write_duplicates
from medmamba_jax.data.auditing.fingerprints import FACT, Facts

THUMBNAIL = 272  # pixels
BITS = 256


def prints(hashes, thumbnails):
    """Hashes, and thumbnails of norm 1."""
    norms = np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 1e-9)
    return hashes, (thumbnails / norms).astype(np.float16)


def joined(*parts):
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def slow(hashes, thumbnails):
    """Pairs of rows by comparing each with each, bit by bit."""
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 32), axis=1).astype(np.int32)
    apart = bits @ (1 - bits).T + (1 - bits) @ bits.T
    alike = thumbnails.astype(np.float64) @ thumbnails.T.astype(np.float64)
    return np.argwhere(np.triu((apart <= 10) & (alike >= 0.98), 1))


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
    return joined(*(prints(*parts) for parts in zip(hashes, thumbnails, strict=True)))


@pytest.mark.parametrize("counts", [(0, 0), (0, 5), (1, 1), (40, 300), (900, 1000)])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_hashes(counts, seed):
    images = random_prints(counts, np.random.default_rng(seed))
    found, distances = near_pairs(*images)
    np.testing.assert_array_equal(found, slow(*images))
    apart = np.bitwise_count(images[0][found[:, 0]] ^ images[0][found[:, 1]]).sum(1)
    np.testing.assert_array_equal(distances, apart)
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
    rows = np.arange(len(changes))
    found, _ = near_pairs(*prints(np.concatenate([hashes, ten]), np.tile(thumbnails, (2, 1))))
    np.testing.assert_array_equal(found, np.column_stack([rows, rows + len(rows)]))
    both = prints(np.concatenate([hashes, eleven]), np.tile(thumbnails, (2, 1)))
    assert not len(near_pairs(*both)[0])


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
    images = joined(*(prints(*parts) for parts in zip(hashes, thumbnails, strict=True)))
    found, _ = near_pairs(*images)
    np.testing.assert_array_equal(found, slow(*images))
    assert len(found) > 50


def test_thousands_of_equal_hashes_take_little_memory():
    """The thumbnails of all pairs would take 2 GB."""
    rng = np.random.default_rng(0)
    hashes = np.repeat(random_hashes(1, rng), 1500, axis=0)
    images = prints(hashes, rng.standard_normal((1500, THUMBNAIL)))
    tracemalloc.start()
    found, _ = near_pairs(*images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not len(found) and peak < 100e6


def test_what_too_many_images_share_is_not_searched_and_that_is_said(monkeypatch, caplog):
    """All rows share a segment, rows 0 to 27 all of them. Rows 28 and 29 are near 58 and 59."""
    monkeypatch.setattr(duplicates, "_MOST_SHARING", 29)
    rng = np.random.default_rng(0)
    hashes = random_hashes(60, rng)
    hashes[:28] = hashes[0]
    shared = np.packbits(np.arange(BITS) % 11 == 0).view(np.uint64)
    hashes = (hashes & ~shared) | (hashes[0] & shared)
    hashes[28:30] = random_hashes(2, rng) & ~shared | (hashes[0] & shared)
    hashes[58:60] = hashes[28:30]
    flip(hashes, 58, [1]), flip(hashes, 59, [2])
    images = prints(hashes, np.repeat(rng.standard_normal((1, THUMBNAIL)), 60, axis=0))
    found, distances = near_pairs(*images)
    alike = [[i, j] for i in range(28) for j in range(i + 1, 28)]
    assert found.tolist() == [*alike, [28, 58], [29, 59]] and distances[-2:].tolist() == [1, 1]
    assert "60 of 60 images are not compared with all others" in caplog.text
    monkeypatch.setattr(duplicates, "_MOST_SHARING", 27)
    assert near_pairs(*images)[0].tolist() == [[28, 58], [29, 59]]
    caplog.clear()
    monkeypatch.setattr(duplicates, "_MOST_SHARING", 60)
    np.testing.assert_array_equal(near_pairs(*images)[0], slow(*images))
    assert not caplog.text


def facts(hashes, thumbnails, pixels, problems=()):
    of = np.zeros(len(hashes), FACT)
    of["dhash"], of["thumbnail"], of["pixels"][:, 0] = hashes, thumbnails, pixels
    return Facts(of, dict.fromkeys(problems, "damaged"))


@pytest.fixture
def chain():
    """Images 0 to 3 and 5 to 19 are near to the next, 4 is equal to 3, and 20 to 24 are blank."""
    rng = np.random.default_rng(0)
    hashes = np.repeat(random_hashes(1, rng), 25, axis=0)
    for row in range(20):
        flip(hashes, row, range(8 * row))
    hashes[4] = hashes[3]
    thumbnails = np.repeat(rng.standard_normal((1, THUMBNAIL)), 25, axis=0)
    thumbnails[20:] = 0
    pixels = np.r_[np.arange(25)]
    pixels[4] = pixels[3]
    pixels[22] = pixels[21]
    return *prints(hashes, thumbnails), pixels


def test_equal_pixels_are_no_pair_of_near_ones_and_blank_images_are_near_to_none(chain):
    found = Duplicates.among(facts(*chain, problems=[23, 24]))
    assert found.near.tolist() == [[0, 1], [1, 2], [2, 3], *([i, i + 1] for i in range(5, 19))]
    assert [rows.tolist() for rows in found.sets()] == [[3, 4], [21, 22]]
    rows = np.array([1, 2, 4, 5, 22, 24])
    part = found.take(rows)
    assert part.near.tolist() == [[0, 1], [1, 2]] and not part.sets()


@pytest.mark.parametrize("count", [25, 1100])
def test_a_long_chain_is_reported_and_not_grouped(chain, count):
    rng = np.random.default_rng(1)
    more = prints(random_hashes(count - 25, rng), rng.standard_normal((count - 25, THUMBNAIL)))
    images = joined(chain[:2], more)
    found = Duplicates.among(facts(*images, np.r_[chain[2], np.arange(25, count)]))
    numbers, chains = found.groups(near=True)
    longest = max(map(len, _sets(numbers)))
    if count == 25:  # 15 of 25 images hang together
        assert [len(rows) for rows in chains] == [15]
        assert longest == 5 and numbers[3] == numbers[4] and numbers[21] == numbers[22]
    else:  # two per cent are 22
        assert not chains and longest == 15
    numbers, chains = found.groups(near=False)
    assert not chains and sorted(map(len, _sets(numbers)))[-3:] == [1, 2, 2]


def _sets(numbers):
    return [np.flatnonzero(numbers == number) for number in np.unique(numbers)]


def test_the_table_names_every_pair(chain, tmp_path):
    found = Duplicates.among(facts(*chain))
    images = LabelledImages(
        np.zeros((25, 4, 4), np.uint8),
        np.arange(25) % 2,
        ("a", "b"),
        names=tuple(f"ä{row}.png" for row in range(25)),
        splits=np.where(np.arange(25) < 5, "train", "val"),
    )
    write_duplicates(tmp_path / "duplicates.csv", images, found)
    with (tmp_path / "duplicates.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 + len(found.near)
    assert rows[0] == {
        "path": "ä3.png",
        "label": "b",
        "split": "train",
        "other_path": "ä4.png",
        "other_label": "a",
        "other_split": "train",
        "distance": "0",
    }
    assert {row["distance"] for row in rows[2:]} == {"8"}


def test_many_equal_images_are_paired_with_the_first_only():
    for count, pairs in ((100, 4950), (101, 100)):
        same = Duplicates(np.zeros(count, int), np.empty((0, 2), int), np.empty(0, int))
        assert len(list(same.pairs())) == pairs
