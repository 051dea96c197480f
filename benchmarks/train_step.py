"""Times a whole training step and inference of a variant on random images.

    python -m benchmarks.train_step --variant medmamba_t --batch 64
    python -m benchmarks.train_step --variant medmamba_b --compile-only   # the cost of depth

The step is the training loop's own: normalisation, loss, gradients, AdamW, donated state.
"""

import argparse
import functools
import time

import jax
import numpy as np

import medmamba_jax as mm
from benchmarks.timing import seconds_per_call, write_json
from medmamba_jax.data import Preprocessing
from medmamba_jax.models import abstract_weights, evaluation_graphdef, training_graphdef
from medmamba_jax.predictor import forward, normalize
from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.losses import make_loss
from medmamba_jax.training.optimizer import frozen_mask, make_optimizer
from medmamba_jax.training.step import StepSpec, init_state, train_step


def measure(config: mm.MedMambaConfig, batch_size: int, side: int, args) -> dict[str, float]:
    """Returns one row's figures."""
    preprocessing = Preprocessing((side, side), config.in_channels, "bilinear", (0.5,), (0.5,))
    params, _ = abstract_weights(config)
    spec = StepSpec(
        graphdef=training_graphdef(config),
        optimizer=make_optimizer(TrainConfig(), 100, params),
        normalize=functools.partial(normalize, preprocessing=preprocessing),
        loss=make_loss("cross_entropy", "multiclass", None, {"label_smoothing": 0.0}),
        frozen=frozen_mask(params, []),
    )
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "image": rng.integers(0, 256, (batch_size, side, side, config.in_channels), np.uint8),
            "label": rng.integers(0, config.num_classes, batch_size, np.int32),
        }
    )
    make = functools.partial(init_state, config, spec.optimizer, 0, average=False)
    state = jax.jit(make)()
    step = jax.jit(functools.partial(train_step, spec=spec), donate_argnums=0)
    begun = time.perf_counter()
    step = step.lower(state, batch).compile()
    row = {
        "compile_seconds": time.perf_counter() - begun,
        "temporary_mib": step.memory_analysis().temp_size_in_bytes / 2**20,
    }
    if args.compile_only:
        return row
    infer = functools.partial(
        forward,
        what="logits",
        graphdef=evaluation_graphdef(config),
        preprocessing=preprocessing,
    )
    inputs = (state.params, state.statistics, batch["image"])
    infer = jax.jit(infer).lower(*inputs).compile()
    seconds = seconds_per_call(lambda: infer(*inputs), calls=args.calls, groups=args.groups)
    row["inference_images_per_second"] = batch_size / seconds

    def take_step():
        nonlocal state
        state, outputs = step(state, batch)
        return outputs

    seconds = seconds_per_call(take_step, calls=args.calls, groups=args.groups)
    row["step_ms"] = 1e3 * seconds
    row["training_images_per_second"] = batch_size / seconds
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    row["peak_memory_gib"] = memory and memory / 2**30
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", nargs="+", default=["medmamba_t"], choices=sorted(mm.VARIANTS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--scan", help="implementation of the scan")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()

    rows = []
    for variant in args.variant:
        for dtype in args.dtype:
            config = mm.MedMambaConfig.variant(
                variant,
                num_classes=6,
                compute_dtype=dtype,
                remat=args.remat,
                scan_implementation=args.scan,
            )
            row = {
                "variant": variant,
                "batch": args.batch,
                "image_size": args.image_size,
                "dtype": dtype,
                "remat": args.remat,
                **measure(config, args.batch, args.image_size, args),
            }
            rows.append(row)
            print(
                {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True
            )
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
