"""Times the training step on 1, 2, 4 and 8 devices of one host, at a fixed batch a device.

    python -m benchmarks.scaling --folder scaling --plot scaling.png
    python -m benchmarks.scaling --folder scaling --batch 128 --devices 1 2 --profile
    python -m benchmarks.scaling --folder scaling --devices --plot scaling.png   # only draw

Each point is a number of devices and a place of the state: on every device (`replicated`), or
shared by the devices (`sharded`, which is `train.shard_state`). A process of its own measures a
point and keeps it as a file in the folder. A point that has a file is not measured again, so other
settings need another folder. Without `--devices`, all numbers of `COUNTS` are measured that the
host has. The batches are noise and lie on the devices already, so the data pipeline is left out.

The efficiency is the rate of n devices, divided by n times the rate of one. `--profile` also
measures how much of the time each device spends in the kernels of collectives; on a CPU that is not
known. To try this without a GPU, let JAX split the processor:

    XLA_FLAGS=--xla_force_host_platform_device_count=2 python -m benchmarks.scaling \\
        --folder trial --variant medmamba_nano --image-size 32 --batch 2 --dtype float32
"""

import argparse
import collections
import functools
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import matplotlib
import numpy as np

from benchmarks.row_files import figure, markdown, measure_missing, read_rows, where
from benchmarks.timing import seconds_per_call, write_json
from benchmarks.train_step import preprocessing_of, random_batch, spec_of
from medmamba_jax.parallel import DataParallel
from medmamba_jax.training.compilation import compile_step
from medmamba_jax.training.config import ModelConfig
from medmamba_jax.training.step import init_state, train_step

matplotlib.use("Agg")

import matplotlib.pyplot as plt

COUNTS = (1, 2, 4, 8)
REPLICATED, SHARDED = PLACES = ("replicated", "sharded")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_MIB = 2**20


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of one point.

    Raises:
        SystemExit: the host has fewer devices.
    """
    if jax.device_count() < args.count:
        sys.exit(f"{args.count} devices are asked for, and there are {jax.device_count()}")
    config = ModelConfig(args.variant, compute_dtype=args.dtype).architecture(num_classes=6)
    parallel = DataParallel(tuple(jax.devices()[: args.count]))
    sharded = args.place == SHARDED
    changes = {"whole": parallel.whole} if sharded else {}
    spec = spec_of(
        config, preprocessing_of(config, args.image_size), accumulate=args.accumulate, **changes
    )
    make = functools.partial(init_state, config, spec.optimizer, average=args.average)
    seed = np.uint32(0)
    shapes = jax.eval_shape(make, seed)
    shardings = parallel.of_state(shapes, sharded=sharded)
    state = jax.jit(make, out_shardings=shardings)(seed)
    batch_size = args.batch * args.count
    batch = parallel.put_batch(random_batch(config, batch_size, args.image_size))
    begun = time.perf_counter()
    lowered = jax.jit(
        functools.partial(train_step, spec=spec),
        donate_argnums=0,
        out_shardings=(shardings, parallel.replicated),
    ).lower(state, batch)
    traced = time.perf_counter()
    step = compile_step(lowered)
    compiled = time.perf_counter()
    memory = step.memory_analysis()
    row: dict[str, Any] = {
        "devices": args.count,
        "place": args.place,
        "variant": args.variant,
        "dtype": args.dtype,
        "batch_a_device": args.batch,
        "image_size": args.image_size,
        "accumulate": args.accumulate,
        "average": args.average,
        "trace_seconds": traced - begun,
        "compile_seconds": compiled - traced,
        "state_mib": bytes_a_device(shapes, shardings) / _MIB,
        "arguments_mib": memory.argument_size_in_bytes / _MIB,
        "temporary_mib": memory.temp_size_in_bytes / _MIB,
        "collectives": collectives(step.as_text()),
    }

    def take_step() -> dict[str, jax.Array]:
        nonlocal state
        state, outputs = step(state, batch)
        return outputs

    seconds = seconds_per_call(take_step, calls=args.calls, groups=args.groups)
    row["step_ms"] = 1e3 * seconds
    row["images_per_second"] = batch_size / seconds
    stats = [device.memory_stats() or {} for device in parallel.devices]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    row["peak_mib"] = max(peaks) / _MIB if peaks else None
    row["collective_share"] = collective_share(take_step, args.calls) if args.profile else None
    row["loss"] = float(take_step()["loss"])
    return row


def bytes_a_device(shapes: Any, shardings: Any) -> int:
    """Returns the bytes that each device holds of a tree of arrays."""
    sizes = jax.tree.map(
        lambda x, sharding: int(np.prod(sharding.shard_shape(x.shape))) * x.dtype.itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def collectives(program: str) -> dict[str, int]:
    """Returns how often each kind of collective is in the text of a compiled program."""
    found = re.findall(rf" ({'|'.join(_COLLECTIVES)})(?:-start)?\(", program)
    return dict(sorted(collections.Counter(found).items()))


def collective_share(run: Callable[[], Any], calls: int) -> float | None:
    """Returns the share of the time in which a GPU runs kernels of NCCL, the mean over the GPUs.

    Other kernels may run at the same time. A device of another kind gives None.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready([run() for _ in range(calls)])
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        shares = []
        for plane in planes:
            if not re.match(r"/device:GPU:\d+", plane.name):
                continue
            # The other lines of a plane repeat these kernels, by operation and by module.
            streams = [line for line in plane.lines if line.name.startswith("Stream")]
            kernels = [
                ("nccl" in event.name.lower(), event.start_ns, event.start_ns + event.duration_ns)
                for stream in streams
                for event in stream.events
            ]
            if kernels:
                span = max(end for *_, end in kernels) - min(start for _, start, _ in kernels)
                shares.append(_union([(a, b) for is_nccl, a, b in kernels if is_nccl]) / span)
    return sum(shares) / len(shares) if shares else None


def _union(intervals: list[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def command(count: int, place: str, args: argparse.Namespace) -> list[str]:
    """Returns the module and the arguments that measure a point."""
    options = {
        "--count": count,
        "--place": place,
        "--variant": args.variant,
        "--dtype": args.dtype,
        "--batch": args.batch,
        "--image-size": args.image_size,
        "--accumulate": args.accumulate,
        "--calls": args.calls,
        "--groups": args.groups,
    }
    switches = [f"--{name}" for name in ("average", "profile") if getattr(args, name)]
    parts = [str(part) for option in options.items() for part in option]
    return ["benchmarks.scaling", *parts, *switches]


def points(counts: list[int]) -> list[tuple[int, str]]:
    """Returns the points of these numbers of devices. One device has nothing to share."""
    return [(count, place) for place in PLACES for count in counts if count > 1 or place != SHARDED]


def number_of_devices() -> int:
    """Asks another process, because this one must not take the devices' memory."""
    program = "import jax; print(jax.device_count())"
    return int(subprocess.check_output([sys.executable, "-c", program], text=True))


def efficiency(row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Returns the rate of n devices, divided by n times the rate of one; None without that."""
    one = rows.get(f"1_{REPLICATED}", {}).get("images_per_second")
    return one and row["images_per_second"] / (row["devices"] * one)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns all points as a Markdown table."""
    header = ["devices", "state", "images a second", "efficiency", "step, ms", "state, MiB"]
    header += ["temporary, MiB", "peak, MiB", "in collectives", "collectives", "compilation, s"]
    lines = []
    for name, row in sorted(rows.items(), key=_order):
        if "failed" in row:
            lines.append([*name.split("_"), row["failed"], *[""] * (len(header) - 3)])
            continue
        ratio, share = efficiency(row, rows), row["collective_share"]
        lines.append(
            [
                str(row["devices"]),
                row["place"],
                figure(row["images_per_second"], 0 if row["images_per_second"] > 100 else 1),
                figure(ratio, 2),
                figure(row["step_ms"], 1),
                figure(row["state_mib"], 1),
                figure(row["temporary_mib"], 0),
                figure(row["peak_mib"], 0),
                "" if share is None else f"{share:.1%}",
                ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items()),
                figure(row["compile_seconds"]),
            ]
        )
    return f"{markdown(header, lines)}\n\n{about(rows)}; {where(rows)}"


def about(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what the points have in common, as text."""
    texts = {
        f"{row['variant']} {row['dtype']}, {row['batch_a_device']} images of {row['image_size']} px"
        f" a device{' in {} parts'.format(row['accumulate']) if row['accumulate'] > 1 else ''}"
        for row in rows.values()
        if "failed" not in row
    }
    return " and ".join(sorted(texts))


def _order(item: tuple[str, Any]) -> tuple[str, int]:
    count, place = item[0].split("_")
    return place, int(count)


def plot(path: str, rows: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Draws the rate, the efficiency and the memory over the number of devices."""
    found = [row for _, row in sorted(rows.items(), key=_order) if "failed" not in row]
    drawn, (rates, ratios, memory) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    counts = sorted({row["devices"] for row in found})
    one = rows.get(f"1_{REPLICATED}", {}).get("images_per_second")
    if one:
        rates.plot(counts, [one * count for count in counts], ":", color="gray", label="ideal")
        ratios.axhline(1, linestyle=":", color="gray")
    for place, marker in zip(PLACES, "os", strict=True):
        line = [row for row in found if row["place"] == place]
        if not line:
            continue
        x = [row["devices"] for row in line]
        rates.plot(x, [row["images_per_second"] for row in line], marker + "-", label=place)
        if one:
            y = [row["images_per_second"] / (row["devices"] * one) for row in line]
            ratios.plot(x, y, marker + "-", label=place)
        memory.plot(x, [row["state_mib"] for row in line], marker + "-", label=place)
    rates.set(ylabel="images a second", title="training")
    ratios.set(ylabel="rate / (devices x rate of one)", title="efficiency")
    memory.set(ylabel="MiB a device", title="parameters and the optimiser's state")
    for axes in (rates, ratios, memory):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("devices")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    rates.yaxis.set_major_formatter("{x:,g}")
    drawn.suptitle(title, fontsize=10)
    drawn.savefig(path, dpi=120)
    plt.close(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="folder of the points")
    parser.add_argument("--devices", nargs="*", type=int, help="numbers of devices to measure")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=PLACES)
    parser.add_argument("--variant", default="medmamba_t")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=64, help="images a device")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--accumulate", type=int, default=1, help="as train.accumulate")
    parser.add_argument("--average", action="store_true", help="keep a moving average, too")
    parser.add_argument("--profile", action="store_true", help="measure the time in collectives")
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--plot", help="file of the picture, such as scaling.png")
    parser.add_argument("--count", type=int, help="measure this point only, in this process")
    parser.add_argument("--place", choices=PLACES, default=REPLICATED, help="the point's place")
    parser.add_argument("--json", help="file for the point")
    args = parser.parse_args()
    if args.count:
        row = measure(args)
        print(row)
        if args.json:
            write_json(args.json, [row])
        return
    if not args.folder:
        parser.error("--folder is needed, or --count for a single point")
    counts = args.devices
    if counts is None:
        available = number_of_devices()
        counts = [count for count in COUNTS if count <= available]
    wanted = [point for point in points(counts) if point[1] in args.places]
    measure_missing(
        pathlib.Path(args.folder),
        {f"{count}_{place}": command(count, place, args) for count, place in wanted},
    )
    rows = read_rows(pathlib.Path(args.folder))
    if not any("failed" not in row for row in rows.values()):
        sys.exit(f"error: no point in {args.folder} was measured; its .log files say why")
    print(table(rows))
    if args.plot:
        plot(args.plot, rows, f"{about(rows)}\n{where(rows)}")


if __name__ == "__main__":
    main()
