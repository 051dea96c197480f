"""Times the scan's implementations on the shapes of MedMamba's stages.

    python -m benchmarks.selective_scan --batch 2 --implementations chunked associative
    python -m benchmarks.selective_scan --operation ss2d --batch 128 \
        --implementations pallas_gpu pallas_gpu_recompute chunked --json scan.json --plot scan.png

The operation `scan` is the bare `selective_scan` with softplus. The operation `ss2d` is the whole
`ss2d_scan` in one jitted call: four orders, projection of the step size, softplus, scan, merge, and
for the kernels the packing of their inputs.

Columns: the forward pass alone, the forward pass that keeps what the backward pass needs, and the
backward pass alone, in ms, each the median over groups of queued calls; on a Hopper GPU, per cent
of its floor (docs/kernels.md); in MiB, what is kept between the passes beyond the inputs, and XLA's
temporaries of the backward pass; the seconds to trace, lower and compile both passes. On a CPU
compare only rows of one run.

If `selective_scan_cuda` of mamba_ssm can be imported, a row has its times for the bare scan on the
same shape, measured by CUDA events.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import medmamba_jax as mm
from benchmarks.timing import seconds_per_call, write_json
from medmamba_jax.ops.scan import IMPLEMENTATIONS
from medmamba_jax.ops.scan.chunked import scan_chunked
from medmamba_jax.ops.scan.implementations import Implementation, on_step_sizes
from medmamba_jax.ops.scan.shapes import ScanShape, all_shapes

MIB = 2**20
# Multiprocessors times clock (Hz) of an H100 SXM and an H200.
HOPPER_CYCLES = 132 * 1.755e9


def make_scan(
    shape: ScanShape, dtype: DTypeLike, implementation: str
) -> tuple[Callable[..., jax.Array], dict[str, jax.Array]]:
    """Returns the bare scan as a function of its inputs, and random inputs."""
    b, l, k, d, n = shape.b, shape.l, shape.k, shape.d, shape.n
    normal = _normals()
    inputs = {
        "u": normal(b, l, k, d).astype(dtype),
        "delta": normal(b, l, k, d).astype(dtype),
        "B": normal(b, l, k, n).astype(dtype),
        "C": normal(b, l, k, n).astype(dtype),
        "D": jnp.ones((k, d)),
        "delta_bias": normal(k, d) - 4,
        "A": _decays(shape),
    }
    run = functools.partial(mm.selective_scan, delta_softplus=True, implementation=implementation)
    return (lambda inputs: run(**inputs)), inputs


def make_ss2d(
    shape: ScanShape, dtype: DTypeLike, implementation: str
) -> tuple[Callable[..., jax.Array], dict[str, jax.Array]]:
    """Returns the scan of an image as a function of its inputs, and random inputs."""
    b, k, d, n = shape.b, shape.k, shape.d, shape.n
    side, r = round(shape.l**0.5), d // 32
    normal = _normals()
    inputs = {
        "u": normal(b, side, side, d).astype(dtype),
        "dt": normal(b, side, side, k, r).astype(dtype),
        "B": normal(b, side, side, k, n).astype(dtype),
        "C": normal(b, side, side, k, n).astype(dtype),
        "dt_weight": normal(k, r, d) / r**0.5,
        "dt_bias": normal(k, d) - 4,
        "A": _decays(shape),
        "D": jnp.ones((k, d)),
    }
    return (lambda inputs: mm.ss2d_scan(**inputs, implementation=implementation)), inputs


OPERATIONS = {"scan": make_scan, "ss2d": make_ss2d}


def _normals():
    keys = iter(jax.random.split(jax.random.key(0), 8))
    return lambda *axes: jax.random.normal(next(keys), axes)


def _decays(shape: ScanShape):
    """Returns A (k, d, n) as in a new model."""
    return jnp.broadcast_to(-jnp.arange(1.0, shape.n + 1), (shape.k, shape.d, shape.n))


def measure(
    run: Callable[..., jax.Array], inputs: dict[str, jax.Array], calls: int, groups: int
) -> dict[str, float]:
    """Returns the columns of one row."""
    y = jax.eval_shape(run, inputs)
    dy = jax.random.normal(jax.random.key(1), y.shape).astype(y.dtype)
    begun = time.perf_counter()
    forward = jax.jit(run).lower(inputs).compile()
    # `pull` is a tree of what the backward pass keeps: the two passes are timed apart.
    keeping = jax.jit(lambda inputs: jax.vjp(run, inputs)).lower(inputs).compile()
    _, pull = keeping(inputs)
    backward = jax.jit(lambda pull, dy: pull(dy)).lower(pull, dy).compile()
    compile_seconds = time.perf_counter() - begun
    sizes = sorted(x.nbytes for x in jax.tree.leaves(pull))
    for x in jax.tree.leaves(inputs):  # kept anyway
        if x.nbytes in sizes:
            sizes.remove(x.nbytes)

    def milliseconds(call):
        return 1e3 * seconds_per_call(call, calls=calls, groups=groups)

    return {
        "forward_ms": milliseconds(lambda: forward(inputs)),
        "keeping_ms": milliseconds(lambda: keeping(inputs)[0]),
        "backward_ms": milliseconds(lambda: backward(pull, dy)),
        "kept_mib": sum(sizes) / MIB,
        "temporary_mib": backward.memory_analysis().temp_size_in_bytes / MIB,
        "compile_seconds": compile_seconds,
    }


def floors_ms(shape: ScanShape) -> tuple[float, float]:
    """The least time of forward and backward on a Hopper GPU, as docs/kernels.md counts it.

    Forward is bound by exponentials, 16 a clock on a multiprocessor: one for each state update and
    two for each softplus. Backward by the issue of 128 lanes a clock, some 22 instructions for
    each state update and as many for each step.
    """
    outputs = shape.b * shape.l * shape.k * shape.d
    forward = outputs * (shape.n + 2) / (16 * HOPPER_CYCLES)
    backward = outputs * 22 * (shape.n + 1) / (128 * HOPPER_CYCLES)
    return 1e3 * forward, 1e3 * backward


def measure_mamba_ssm(
    shape: ScanShape, dtype: str, calls: int, groups: int
) -> dict[str, float] | None:
    """Times mamba_ssm's CUDA scan on ready-made deltas; None where it cannot be imported."""
    try:
        import selective_scan_cuda
        import torch
    except ImportError:
        return None
    b, l, k, d, n = shape.b, shape.l, shape.k, shape.d, shape.n

    def normal(*axes):
        return torch.randn(*axes, device="cuda")

    narrow = getattr(torch, dtype)
    u, delta = normal(b, k * d, l).to(narrow), normal(b, k * d, l).to(narrow)
    A = -torch.exp(0.3 * normal(k * d, n) + 1)
    B, C = normal(b, k, n, l).to(narrow), normal(b, k, n, l).to(narrow)
    D, bias = normal(k * d), normal(k * d) - 4

    def forward():
        return selective_scan_cuda.fwd(u, delta, A, B, C, D, None, bias, True)

    y, kept, *_ = forward()
    dy = torch.randn_like(y)

    def backward():
        return selective_scan_cuda.bwd(
            u, delta, A, B, C, D, None, bias, dy, kept, None, None, True, False
        )

    def milliseconds(call):
        timings = []
        for _ in range(groups + 1):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            for _ in range(calls):
                call()
            ended.record()
            torch.cuda.synchronize()
            timings.append(begun.elapsed_time(ended) / calls)
        return statistics.median(timings[1:])

    return {"forward_ms": milliseconds(forward), "backward_ms": milliseconds(backward)}


def plot(path: str, title: str, rows: list[dict[str, Any]]) -> None:
    """Draws bars of both passes for each shape and implementation, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    bars = list(dict.fromkeys((row["implementation"], row["dtype"]) for row in rows))
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for axis, column in zip(axes, ("forward_ms", "backward_ms"), strict=True):
        for i, bar in enumerate(bars):
            found = {
                row["shape"]: row[column]
                for row in rows
                if (row["implementation"], row["dtype"]) == bar
            }
            places = [j + (i - (len(bars) - 1) / 2) * 0.8 / len(bars) for j in range(len(shapes))]
            heights = [found.get(shape, float("nan")) for shape in shapes]
            axis.bar(places, heights, 0.8 / len(bars), label=", ".join(bar))
        axis.set_xticks(range(len(shapes)), shapes)
        axis.set_yscale("log")
        axis.set_title(column.removesuffix("_ms"))
    axes[0].set_ylabel("ms")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


COLUMNS = {
    "forward_ms": ("forward", 2),
    "keeping_ms": ("keeping", 2),
    "backward_ms": ("backward", 2),
    "forward_of_floor": ("% floor", 0),
    "backward_of_floor": ("% floor", 0),
    "kept_mib": ("kept", 0),
    "temporary_mib": ("temp", 0),
    "compile_seconds": ("compile", 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operation", default="scan", choices=OPERATIONS)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--shapes", nargs="+", default=["S1", "S2", "S3", "S4"], choices=list(all_shapes(1))
    )
    parser.add_argument("--length", type=int, help="of a bare scan, in place of the shape's own")
    parser.add_argument(
        "--implementations", nargs="+", default=["chunked"], choices=sorted(IMPLEMENTATIONS)
    )
    parser.add_argument(
        "--chunks",
        nargs="*",
        type=int,
        default=[],
        help="also the chunked scan with chunks of at most this",
    )
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--plot", help="PNG for forward and backward")
    args = parser.parse_args()

    if args.length and args.operation != "scan":
        parser.error("--length is for the bare scan: an image's length is its sides'")
    names = list(args.implementations)
    for longest in args.chunks:
        name = f"chunked, {longest}"
        run = functools.partial(scan_chunked, longest=longest)
        IMPLEMENTATIONS[name] = Implementation(on_step_sizes(run))
        names.append(name)

    device = jax.devices()[0].device_kind
    is_hopper = "H100 80GB HBM3" in device or "H200" in device  # the SXM ones
    title = f"{args.operation}, batch {args.batch}, {device}, jax {jax.__version__}"
    print(title)
    headings = "".join(f"{heading:>10}" for heading, _ in COLUMNS.values())
    print(f"{'shape':<7}{'dtype':<10}{'implementation':<22}{headings}")
    rows = []

    def report(shape_name, dtype, name, shape, figures):
        if is_hopper:
            for column, floor in zip(("forward", "backward"), floors_ms(shape), strict=True):
                figures[f"{column}_of_floor"] = 100 * floor / figures[f"{column}_ms"]
        common = {"shape": shape_name, "implementation": name, "dtype": dtype, "length": shape.l}
        rows.append({**common, "operation": args.operation, "batch": args.batch, **figures})
        cells = (
            f"{figures[column]:>10.{digits}f}" if column in figures else f"{'':>10}"
            for column, (_, digits) in COLUMNS.items()
        )
        print(f"{shape_name:<7}{dtype:<10}{name:<22}{''.join(cells)}", flush=True)

    for shape_name in args.shapes:
        shape = all_shapes(args.batch)[shape_name]
        if args.length:
            shape = ScanShape(shape.b, args.length, shape.k, shape.d, shape.n)
        for dtype in args.dtype:
            for name in names:
                run, inputs = OPERATIONS[args.operation](shape, jnp.dtype(dtype), name)
                figures = measure(run, inputs, args.calls, args.groups)
                report(shape_name, dtype, name, shape, figures)
            figures = measure_mamba_ssm(shape, dtype, args.calls, args.groups)
            if figures is not None:
                report(shape_name, dtype, "mamba_ssm (bare)", shape, figures)
    if args.json:
        write_json(args.json, rows)
    if args.plot:
        plot(args.plot, title, rows)


if __name__ == "__main__":
    main()
