"""Watches the memory of this process while it trains on images that are kept on the disk.

    python -m benchmarks.resident                     # 1.1 times the memory of this machine
    python -m benchmarks.resident --gigabytes 4

A program makes the images, so that nothing else reads the disk. The first pass writes all pixels
into one file. Then a small model trains for some epochs, in each of which it reads all images in
random order. The resident size counts the memory of the process itself; the system's cache of the
disk is not part of it.
"""

import argparse
import pathlib
import tempfile
import threading
import time

import numpy as np
import psutil

import medmamba_jax as mm
from benchmarks.timing import write_json

_SIDE = 512  # pixels; an image is grey
_SECONDS = 20  # between two lines
# A step takes little time, so that reading is a large part of it.
mm.VARIANTS["smallest"] = {"patch_size": 32, "depths": (1, 1), "dims": (8, 16)}
_NOISE = np.random.default_rng(0).integers(0, 256, (2 * _SIDE, _SIDE), np.uint8)


class Noise:
    """Images that differ: image i has the number i in its first pixels."""

    def __init__(self, first: int, count: int):
        self.first = first
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> np.ndarray:
        pixels = _NOISE[i % _SIDE : i % _SIDE + _SIDE].copy()
        pixels[0, :8] = np.frombuffer((self.first + i).to_bytes(8, "little"), np.uint8)
        return pixels


def labelled(first: int, count: int) -> mm.LabelledImages:
    images = Noise(first, count)
    return mm.LabelledImages(images, np.arange(count) % 2, ("even", "odd"), synthetic=True)


def resident() -> float:
    """Returns the anonymous memory of this process in MiB."""
    memory = psutil.Process().memory_info()
    return (memory.rss - getattr(memory, "shared", 0)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, help="size of the pixels")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()

    memory = psutil.virtual_memory().total / 1e9
    count = int((args.gigabytes or 1.1 * memory) * 1e9) // _SIDE**2
    rows = []
    begun = time.time()

    def report(what: str) -> None:
        rows.append({"what": what, "resident_mib": resident(), "seconds": time.time() - begun})
        print({k: round(v) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS):
            report("running")

    report(f"{count} images, {count * _SIDE**2 / 1e9:.1f} GB, memory {memory:.1f} GB")
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = mm.default_config()
            config.model.variant, config.model.in_channels = "smallest", 1
            config.data.image_size, config.data.audit = _SIDE, False
            config.data.cache, config.data.cache_dir = "disk", folder
            config.train.epochs = args.epochs
            splits = {"train": labelled(0, count), "val": labelled(count, 256)}
            mm.train(config, pathlib.Path(folder) / "run", splits)
    finally:
        ended.set()
        watcher.join()
    report("after the training")
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
