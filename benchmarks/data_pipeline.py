"""Times reading: images a second against cores, workers and caches, and where the time goes.

    python -m benchmarks.data_pipeline                                 # drawn images, JPEG, 224 px
    python -m benchmarks.data_pipeline --path my_images --cores 1 2 4 --workers 0 2
    python -m benchmarks.data_pipeline --augmentation official light --cache none memory disk

No model trains meanwhile. In training, the loop's own Python code takes turns with the reading
threads. The first pass fills a cache; `later` is the mean of those that follow. The microseconds
of each part are the processor time that one thread takes for an image.
"""

import argparse
import dataclasses
import io
import itertools
import os
import statistics
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks.timing import write_json
from medmamba_jax.data import (
    DataConfig,
    Dataset,
    LabelledImages,
    Preprocessing,
    build_dataset,
    train_batches,
)
from medmamba_jax.data.first_pass import first_pass
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.sources.phantom import draw

_SIDE = 224  # of drawn images, in pixels
_CACHES = ("auto", "none", "memory", "disk")  # of the host
_TIMED = 200  # images, for the parts


def drawn(count: int) -> Dataset:
    """Returns phantoms as colour JPEG files of 224 pixels a side, all in a training split."""
    images, labels = draw(count, seed=0)
    files = []
    for pixels in images:
        buffer = io.BytesIO()
        large = Image.fromarray(pixels).resize((_SIDE, _SIDE)).convert("RGB")
        large.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return Dataset({"train": LabelledImages(files, labels, ("a", "b", "c"), synthetic=True)})


def parts(dataset: Dataset, preprocessing: Preprocessing, augmentation: str) -> dict[str, float]:
    """Returns microseconds an image of each part, and the share of decoding in them."""
    split = dataset.splits["train"]
    policy, rng = POLICIES[augmentation], np.random.default_rng(0)
    seconds = {"read": [], "decode": [], "augment_and_resize": []}
    for row in np.linspace(0, len(split) - 1, _TIMED).astype(int).tolist():
        begun = time.thread_time()
        image = split.read(row)
        read = time.thread_time()
        pixels = preprocessing.decode(image)
        decoded = time.thread_time()
        preprocessing.resize(pixels, policy(pixels.shape[1], pixels.shape[0], rng))
        seconds["augment_and_resize"].append(time.thread_time() - decoded)
        seconds["decode"].append(decoded - read)
        seconds["read"].append(read - begun)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {f"{name}_us": 1e6 * value for name, value in medians.items()}
    return result | {"decode_share": medians["decode"] / sum(medians.values())}


def measure(dataset: Dataset, preprocessing: Preprocessing, config: DataConfig, args) -> dict:
    """Returns the seconds of the first pass, and images a second of the epochs after it."""
    begun = time.perf_counter()
    seen = first_pass(dataset.splits["train"], preprocessing, config)
    passed, where, split = time.perf_counter() - begun, seen.text, seen.images
    steps = len(split) // args.batch
    rates, cpu = [], []
    with train_batches(
        split,
        preprocessing,
        config.augmentation,
        batch_size=args.batch,
        seed=0,
        num_workers=config.num_workers,
    ) as batches:
        for _ in range(1 + args.epochs):
            begun, used = time.perf_counter(), time.process_time()
            for _ in range(steps):
                next(batches)
            rates.append(steps * args.batch / (time.perf_counter() - begun))
            cpu.append((time.process_time() - used) / (steps * args.batch))
    return {
        "where": where,
        "first_pass_s": passed,
        "first_images_per_second": rates[0],
        "later_images_per_second": args.epochs / sum(1 / rate for rate in rates[1:]),
        "later_cpu_us": 1e6 * float(np.mean(cpu[1:])),  # without that of worker processes
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", default="", help="as data.path; drawn images if none is given")
    parser.add_argument("--images", type=int, default=1800, help="how many to draw")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--augmentation", nargs="+", default=["none"], choices=tuple(POLICIES))
    parser.add_argument("--cache", nargs="+", default=["none", "memory"], choices=_CACHES)
    parser.add_argument("--cores", nargs="+", type=int, help="Linux only; all by default")
    parser.add_argument("--workers", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=2, help="after the first")
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()

    config = DataConfig(path=args.path, image_size=args.image_size)
    dataset = build_dataset(config) if args.path else drawn(args.images)
    dataset = dataclasses.replace(dataset, splits={"train": dataset.splits["train"]})
    preprocessing = config.preprocessing(args.channels)
    every_core = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    rows = []
    settings = itertools.product(
        args.augmentation, args.cores or [len(every_core)], args.workers, args.cache
    )
    for augmentation, cores, workers, cache in settings:
        if args.cores:
            os.sched_setaffinity(0, every_core[:cores])
        with tempfile.TemporaryDirectory() as cache_dir:
            chosen = dataclasses.replace(
                config,
                augmentation=augmentation,
                num_workers=workers,
                cache=cache,
                cache_dir=cache_dir,
            )
            row = {
                "augmentation": augmentation,
                "cores": cores,
                "workers": workers,
                "cache": cache,
                "batch": args.batch,
                **measure(dataset, preprocessing, chosen, args),
                **parts(dataset, preprocessing, augmentation),
            }
        rows.append(row)
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
