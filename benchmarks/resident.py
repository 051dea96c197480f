"""Watches the memory of this process while it reads images that are kept on the disk.

    python -m benchmarks.resident                     # twice the free memory of this machine
    python -m benchmarks.resident --gigabytes 4

A program makes the images, so that nothing else reads the disk. No model trains meanwhile. The
first pass writes all pixels into one file, and two epochs read them in random order. The resident
size counts the memory of the process itself; the system's cache of the disk is not part of it.
"""

import argparse
import tempfile
import time

import numpy as np
import psutil

from benchmarks.timing import write_json
from medmamba_jax.data import DataConfig, LabelledImages, train_batches
from medmamba_jax.data.first_pass import first_pass

_SIDE = 512  # pixels; an image is grey
_BATCH = 64
_REPORTS = 8  # lines for an epoch
_NOISE = np.random.default_rng(0).integers(0, 256, (2 * _SIDE, _SIDE), np.uint8)


class Noise:
    """Images that differ: image i has the number i in its first pixels."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> np.ndarray:
        pixels = _NOISE[i % _SIDE : i % _SIDE + _SIDE].copy()
        pixels[0, :8] = np.frombuffer(i.to_bytes(8, "little"), np.uint8)
        return pixels


def resident() -> float:
    """Returns the anonymous memory of this process in MiB."""
    memory = psutil.Process().memory_info()
    return (memory.rss - getattr(memory, "shared", 0)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, help="size of the pixels")
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()

    memory = psutil.virtual_memory()
    count = int((args.gigabytes or 2 * memory.available / 1e9) * 1e9) // _SIDE**2
    rows = []

    def report(what: str) -> None:
        rows.append({"what": what, "resident_mib": resident(), "seconds": time.time() - begun})
        print({k: round(v) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)

    begun = time.time()
    images = LabelledImages(Noise(count), np.arange(count) % 2, ("even", "odd"), synthetic=True)
    gigabytes = count * _SIDE**2 / 1e9
    report(f"{count} images, {gigabytes:.1f} GB, memory {memory.total / 1e9:.1f} GB")
    with tempfile.TemporaryDirectory() as folder:
        config = DataConfig(image_size=_SIDE, cache="disk", cache_dir=folder, audit=False)
        preprocessing = config.preprocessing(1)
        seen = first_pass(images, preprocessing, config)
        report("after the first pass")
        steps = count // _BATCH
        with train_batches(
            seen.images, preprocessing, "none", batch_size=_BATCH, seed=0
        ) as batches:
            for step in range(1, 2 * steps + 1):
                next(batches)
                if step % max(steps // _REPORTS, 1) == 0:
                    report(f"epoch {step / steps:.2f}")
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
