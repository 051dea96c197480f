"""Times the search for similar images on hashes that are as alike as those of chest X-rays.

    python -m benchmarks.near_duplicates --images 20000 100000

Each thumbnail is a common picture plus smooth random fields, so that neighbouring bits of a hash
are alike and hashes of different images agree in many bits. Of 2,948 real chest X-rays at 224 px,
1.5 % of all pairs agree in one of the eleven parts of their hashes, and the median distance is 72
bits; `agreeing` and `median_bits` show the same of the drawn ones. One image in a hundred has a
copy with a little noise, which the search has to find.
"""

import argparse
import time

import numpy as np
from scipy import ndimage

from benchmarks.timing import write_json
from medmamba_jax.data.auditing.duplicates import near_pairs

_COPIES = 100  # an image in so many has a copy
_COMMON, _WIDE, _FINE = 1.0, 0.95, 0.25  # weights of the common picture and of the random fields


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns hashes, uint64 (n, 4), and thumbnails of norm 1, float16 (n, 272)."""
    rng = np.random.default_rng(seed)
    common = ndimage.gaussian_filter(rng.standard_normal((16, 17)), 2.5)
    wide = ndimage.gaussian_filter(rng.standard_normal((count, 16, 17), np.float32), (0, 2.5, 2.5))
    fine = ndimage.gaussian_filter(rng.standard_normal((count, 16, 17), np.float32), (0, 0.8, 0.8))
    pixels = (
        _COMMON * common / common.std() + _WIDE * wide / wide.std() + _FINE * fine / fine.std()
    ).astype(np.float32)
    copies = np.arange(count // _COPIES)
    pixels[count - 1 - copies] = pixels[copies]
    pixels[count - 1 - copies] += 0.001 * rng.standard_normal((len(copies), 16, 17), np.float32)
    bits = (pixels[:, :, 1:] > pixels[:, :, :-1]).reshape(count, -1)
    flat = pixels.reshape(count, -1)
    flat = flat - flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64), flat.astype(np.float16)


def alike(hashes: np.ndarray) -> dict[str, float]:
    """Returns how alike hashes are; see the module."""
    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(hashes), -1), axis=1)
    agreeing = 0.0
    for start in range(11):
        _, counts = np.unique(bits[:, start::11], axis=0, return_counts=True)
        agreeing += float((counts * (counts - 1.0)).sum()) / len(hashes) ** 2
    some = hashes[:300]
    apart = np.bitwise_count(some[:, None] ^ some).sum(-1)
    return {"agreeing": agreeing, "median_bits": float(np.median(apart[np.triu_indices(300, 1)]))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", nargs="+", type=int, default=[20_000, 100_000])
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()
    rows = []
    for count in args.images:
        hashes, thumbnails = drawn(count)
        begun, used = time.perf_counter(), time.process_time()
        pairs, _ = near_pairs(hashes, thumbnails)
        row = {
            "images": count,
            "seconds": time.perf_counter() - begun,
            "cpu_seconds": time.process_time() - used,
            "pairs": len(pairs),
            "copies": count // _COPIES,
            **alike(hashes[:5000]),
        }
        rows.append(row)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
