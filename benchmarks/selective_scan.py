"""Times the selective scan's implementations on the shapes of MedMamba-T's four stages.

    python -m benchmarks.selective_scan --batch 2 --implementations chunked associative
    python -m benchmarks.selective_scan --batch 128 --chunks 16 32 64 128     # sweep on a GPU

Columns: forward, and value with all seven gradients, in ms (median of groups of queued calls);
XLA's temporary memory of the latter in MiB; compile seconds of the latter. On a CPU compare rows
of one run only.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

import medmamba_jax as mm
from benchmarks.timing import seconds_per_call, write_json
from medmamba_jax.ops.selective_scan import IMPLEMENTATIONS
from medmamba_jax.ops.selective_scan import api as scan_api
from medmamba_jax.ops.selective_scan.chunked import scan_chunked
from medmamba_jax.ops.selective_scan.shapes import ScanShape, stage_shapes


def make_inputs(shape: ScanShape, dtype) -> dict[str, jax.Array]:
    """Random inputs with decays as a new model has them; u, delta, B and C in `dtype`."""
    b, l, k, d, n = shape.b, shape.l, shape.k, shape.d, shape.n
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def normal(*axes):
        return jax.random.normal(next(keys), axes)

    return {
        "u": normal(b, l, k, d).astype(dtype),
        "delta": normal(b, l, k, d).astype(dtype),
        "A": jnp.broadcast_to(-jnp.arange(1.0, n + 1), (k, d, n)),
        "B": normal(b, l, k, n).astype(dtype),
        "C": normal(b, l, k, n).astype(dtype),
        "D": jnp.ones((k, d)),
        "delta_bias": jax.random.uniform(next(keys), (k, d), minval=-6.0, maxval=-2.0),
    }


def measure(inputs, implementation: str, calls: int, groups: int) -> dict[str, float]:
    """Returns one row's figures."""

    def forward(inputs):
        return mm.selective_scan(**inputs, delta_softplus=True, implementation=implementation)

    def both(inputs, dy):
        y, pull = jax.vjp(forward, inputs)
        return y, pull(dy)

    dy = jax.random.normal(jax.random.key(1), inputs["u"].shape).astype(inputs["u"].dtype)
    run_forward = jax.jit(forward).lower(inputs).compile()
    begun = time.perf_counter()
    run_both = jax.jit(both).lower(inputs, dy).compile()
    compile_seconds = time.perf_counter() - begun
    forward_ms = 1e3 * seconds_per_call(lambda: run_forward(inputs), calls=calls, groups=groups)
    both_ms = 1e3 * seconds_per_call(lambda: run_both(inputs, dy), calls=calls, groups=groups)
    return {
        "forward_ms": forward_ms,
        "value_and_gradients_ms": both_ms,
        "backward_ms": both_ms - forward_ms,
        "temporary_mib": run_both.memory_analysis().temp_size_in_bytes / 2**20,
        "compile_seconds": compile_seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--stages", nargs="+", default=list(stage_shapes(1)), choices=list(stage_shapes(1))
    )
    parser.add_argument("--length", type=int, help="in place of the stage's own length")
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
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()

    names = list(args.implementations)
    for longest in args.chunks:
        name = f"chunked, {longest}"
        run = functools.partial(scan_chunked, longest=longest)
        scan_api.IMPLEMENTATIONS[name] = scan_api.Implementation(run)
        names.append(name)

    rows = []
    print(f"{jax.devices()[0].device_kind}, {args.dtype}, batch {args.batch}")
    print(
        f"{'stage':<6}{'implementation':<16}{'forward':>10}{'+ backward':>12}"
        f"{'MiB':>10}{'compile':>9}"
    )
    for stage in args.stages:
        shape = stage_shapes(args.batch)[stage]
        if args.length:
            shape = ScanShape(shape.b, args.length, shape.k, shape.d, shape.n)
        inputs = make_inputs(shape, np.dtype(args.dtype))
        for name in names:
            row = measure(inputs, name, args.calls, args.groups)
            rows.append(
                {
                    "stage": stage,
                    "implementation": name,
                    "batch": args.batch,
                    "length": shape.l,
                    "dtype": args.dtype,
                    **row,
                }
            )
            print(
                f"{stage:<6}{name:<16}{row['forward_ms']:>10.2f}"
                f"{row['value_and_gradients_ms']:>12.2f}{row['temporary_mib']:>10.0f}"
                f"{row['compile_seconds']:>9.1f}",
                flush=True,
            )
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
