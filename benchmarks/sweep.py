"""Measures how training and inference scale with the number of images and of pixels, and plots it.

    python -m benchmarks.sweep --folder sweep --plot sweep.png
    python -m benchmarks.sweep --folder sweep --points 64x224 8x1024   # batch x side in pixels
    python -m benchmarks.sweep --folder sweep --points --plot sweep.png   # draw what is there

Each point is a row of `benchmarks.train_step`, measured by a process of its own and kept as a file
in the folder; a point that has a file is not measured again. So several processes, on GPUs or
machines of their own, can share the work. The plot names the points that do not fit into memory.
Without `--points`, all of `POINTS` are measured.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import matplotlib

from benchmarks.row_files import measure_missing, read_rows, where

matplotlib.use("Agg")

import matplotlib.pyplot as plt

# The first points vary the batch at one size. The others vary the size, at small batches.
POINTS = [
    *(f"{batch}x224" for batch in (8, 16, 32, 64, 128, 256, 512)),
    *(f"{batch}x{side}" for batch in (8, 16) for side in (384, 512, 768, 1024)),
]
_KINDS = ("training", "inference")
_SIDE = 224  # of the images whose batches vary


def command(point: str, args: argparse.Namespace) -> list[str]:
    """Returns the module and the arguments that measure a point."""
    batch, side = point.split("x")
    options = {
        "--variant": args.variant,
        "--dtype": args.dtype,
        "--batch": batch,
        "--image-size": side,
        "--calls": str(args.calls),
        "--groups": str(args.groups),
    }
    return ["benchmarks.train_step", *(part for option in options.items() for part in option)]


def plot(path: str, rows: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Draws images a second over the batch, megapixels a second over the side, and memory."""
    found = {point: row for point, row in rows.items() if "failed" not in row}
    failed = sorted((point for point, row in rows.items() if "failed" in row), key=_numbers)
    figure, (by_batch, by_side, memory) = plt.subplots(
        1, 3, figsize=(15, 4.6), layout="constrained"
    )
    batches = sorted((r for r in found.values() if r["image_size"] == _SIDE), key=_batch)
    for kind, marker in (("inference", "s"), ("training", "o")):
        rates = [row[f"{kind}_images_per_second"] for row in batches]
        by_batch.plot([row["batch"] for row in batches], rates, marker + "-", label=kind)
        for batch, style in _batches_of_sides(found):
            line = sorted((r for r in found.values() if r["batch"] == batch), key=_side)
            by_side.plot(
                [row["image_size"] for row in line],
                [row[f"{kind}_images_per_second"] * row["image_size"] ** 2 / 1e6 for row in line],
                marker + style,
                color="C0" if kind == "inference" else "C1",
                label=f"{kind}, batch {batch}",
            )
    by_batch.set_xscale("log", base=2)
    by_batch.set_xticks(shown := [row["batch"] for row in batches], [str(x) for x in shown])
    by_side.set_xticks(sorted({row["image_size"] for row in found.values()}))
    by_batch.set(xlabel="images in a batch", ylabel="images a second", title=f"{_SIDE} px")
    by_side.set(
        xlabel="side of an image, pixels", ylabel="megapixels a second", title="larger images"
    )
    in_memory = [row for row in found.values() if row["peak_memory_gib"] is not None]
    groups = {
        f"{_SIDE} px": [row for row in in_memory if row["image_size"] == _SIDE],
        "larger images": [row for row in in_memory if row["image_size"] != _SIDE],
    }
    for (label, group), marker in zip(groups.items(), "o^", strict=True):
        pixels = [row["batch"] * row["image_size"] ** 2 / 1e6 for row in group]
        memory.plot(pixels, [row["peak_memory_gib"] for row in group], marker, label=label)
    memory.set(xlabel="megapixels in a batch", ylabel="peak memory, GiB", title="memory")
    for axes in (by_batch, by_side, memory):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.grid(alpha=0.3)
        axes.legend()
    if not in_memory:
        memory.clear()
        memory.set_axis_off()
    if failed:
        names = ", ".join("{} images of {} px".format(*_numbers(x)) for x in failed)
        title += f"\ntoo large for the memory: {names}"
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _batch(row: Mapping[str, Any]) -> int:
    return row["batch"]


def _side(row: Mapping[str, Any]) -> int:
    return row["image_size"]


def _numbers(point: str) -> list[int]:
    return [int(part) for part in point.split("x")]


def _batches_of_sides(rows: Mapping[str, Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Returns the batch sizes measured with larger images, each with a style of line."""
    batches = sorted({row["batch"] for row in rows.values() if row["image_size"] != _SIDE})
    return list(zip(batches, ("-", "--", ":", "-."), strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="folder of the points")
    parser.add_argument(
        "--points", nargs="*", default=POINTS, help="<batch>x<side>; all by default"
    )
    parser.add_argument("--variant", default="medmamba_t")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--plot", help="file of the picture, such as sweep.png")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder)
    measure_missing(folder, {point: command(point, args) for point in args.points})
    rows = read_rows(folder)
    for point in sorted(rows, key=_numbers):
        row = rows[point]
        if "failed" in row:
            print(f"{point:>9} {row['failed']}")
            continue
        peak = "" if row["peak_memory_gib"] is None else f"  {row['peak_memory_gib']:.1f} GiB"
        rates = [f"{kind} {row[f'{kind}_images_per_second']:,.0f} img/s" for kind in _KINDS]
        print(f"{point:>9} {'  '.join(rates)}{peak}")
    if args.plot and not any("dtype" in row for row in rows.values()):
        sys.exit(f"error: {folder} has no point to draw")
    if args.plot:
        variants = sorted({f"{r['variant']} {r['dtype']}" for r in rows.values() if "dtype" in r})
        plot(args.plot, rows, f"{', '.join(variants)}: {where(rows)}")


if __name__ == "__main__":
    main()
