"""Times a whole training step and inference of a variant on random images.

    python -m benchmarks.train_step --variant medmamba_t --batch 64
    python -m benchmarks.train_step --variant medmamba_b --compile-only   # the cost of depth
    python -m benchmarks.train_step --table speed --batch 128 --calls 5   # beside other models

The step is the training loop's own: normalisation, loss, gradients, AdamW, donated state.

`--table FOLDER` measures every row of `TABLE` that has no file in the folder yet, each in a process
of its own. Then it prints all rows as a Markdown table: models of this project, models of timm, and
with `--official` the official code (`benchmarks/torch_step.py`). `--rows` names the rows to
measure, so that several machines or GPUs can share the work.
"""

import argparse
import functools
import importlib.util
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

import medmamba_jax as mm
from benchmarks import resnet, torch_step
from benchmarks.row_files import chosen, figure, markdown, measure_missing, read_rows, where
from benchmarks.timing import seconds_per_call, write_json
from medmamba_jax.data import Preprocessing
from medmamba_jax.models import abstract_weights, evaluation_graphdef, training_graphdef
from medmamba_jax.predictor import forward, normalize
from medmamba_jax.training.compilation import compile_step
from medmamba_jax.training.config import ModelConfig, TrainConfig
from medmamba_jax.training.losses import make_loss
from medmamba_jax.training.optimizer import frozen_mask, make_optimizer
from medmamba_jax.training.step import StepSpec, init_state, train_step

# Variants of this project, and the ResNets of benchmarks/resnet.py.
_VARIANTS = sorted({**mm.VARIANTS, **resnet.VARIANTS})
_OURS, _BASELINE, _TIMM, _OFFICIAL = "this project", "flax.nnx, here", "timm", "official code"
# Row -> (model, code, name for the process, dtype, whether torch.compile compiles it).
TABLE: dict[str, tuple[str, str, str, str, bool]] = {
    **{
        f"{variant}_{dtype}": (title, _OURS, variant, dtype, False)
        for title, variant in (
            ("MedMamba-T", "medmamba_t"),
            ("MedMamba-S", "medmamba_s"),
            ("MedMamba-B", "medmamba_b"),
            ("MedMamba-v1", "medmamba_v1"),
        )
        for dtype in ("bfloat16", "float32")
    },
    **{
        f"{variant}_bfloat16": (title, _BASELINE, variant, "bfloat16", False)
        for title, variant in (("ResNet-18", "resnet18"), ("ResNet-50", "resnet50"))
    },
    **{
        f"timm_{name}{'_compiled' * compiled}": (title, _TIMM, name, "bfloat16", compiled)
        for title, name in (
            ("ResNet-50", "resnet50"),
            ("ConvNeXt-T", "convnext_tiny"),
            ("Swin-T", "swin_tiny_patch4_window7_224"),
        )
        for compiled in (False, True)
    },
    **{
        f"official_{variant}_{dtype}": (title, _OFFICIAL, variant, dtype, False)
        for title, variant in (
            ("MedMamba-T", "medmamba_t"),
            ("MedMamba-S", "medmamba_s"),
            ("MedMamba-B", "medmamba_b"),
        )
        for dtype in ("bfloat16", "float32")
    },
}


def preprocessing_of(config: mm.MedMambaConfig, side: int) -> Preprocessing:
    """Returns how square images of this many pixels become the model's input."""
    return Preprocessing((side, side), config.in_channels, "bilinear", (0.5,), (0.5,))


def spec_of(config: mm.MedMambaConfig, preprocessing: Preprocessing, **changes: Any) -> StepSpec:
    """Returns the static arguments of a step with cross-entropy and AdamW."""
    params, _ = abstract_weights(config)
    return StepSpec(
        graphdef=training_graphdef(config),
        optimizer=make_optimizer(TrainConfig(), 100, params),
        normalize=functools.partial(normalize, preprocessing=preprocessing),
        loss=make_loss("cross_entropy", "multiclass", None, {"label_smoothing": 0.0}),
        frozen=frozen_mask(params, []),
        **changes,
    )


def random_batch(config: mm.MedMambaConfig, size: int, side: int) -> dict[str, np.ndarray]:
    """Returns a batch of noise, as the step takes it."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, side, side, config.in_channels), np.uint8),
        "label": rng.integers(0, config.num_classes, size, np.int32),
    }


def measure(config: mm.MedMambaConfig, batch_size: int, side: int, args) -> dict[str, float]:
    """Returns one row's figures."""
    preprocessing = preprocessing_of(config, side)
    spec = spec_of(config, preprocessing)
    batch = jax.device_put(random_batch(config, batch_size, side))
    make = functools.partial(init_state, config, spec.optimizer, 0, average=False)
    state = jax.jit(make)()
    step = jax.jit(functools.partial(train_step, spec=spec), donate_argnums=0)
    begun = time.perf_counter()
    step = compile_step(step.lower(state, batch))
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


def command(row: str, args: argparse.Namespace) -> list[str]:
    """Returns the module and the arguments that measure a row of `TABLE`."""
    _, code, name, dtype, compiled = TABLE[row]
    if code in (_OURS, _BASELINE):
        model = ["benchmarks.train_step", "--variant", name]
    elif code == _TIMM:
        model = ["benchmarks.torch_step", "--model", f"{torch_step.TIMM}/{name}"]
    else:
        model = ["benchmarks.torch_step", "--model", f"{torch_step.OFFICIAL}/{name}"]
        model += ["--official", args.official]
    options = {
        "--dtype": dtype,
        "--batch": args.batch,
        "--image-size": args.image_size,
        "--calls": args.calls,
        "--groups": args.groups,
    }
    model += [str(part) for option in options.items() for part in option]
    return [*model, "--compile"] if compiled else model


def table(folder: pathlib.Path, args: argparse.Namespace) -> str:
    """Measures the rows that `args.rows` names, and returns all rows of the folder as Markdown."""
    missing = {
        _TIMM: "" if importlib.util.find_spec("timm") else "timm is not installed",
        _OFFICIAL: "" if args.official else "--official is not given",
    }
    for code, reason in missing.items():
        if reason:
            print(f"rows of {code} are left out: {reason}", file=sys.stderr)
    wanted = [row for row in chosen(list(TABLE), args.rows) if not missing.get(TABLE[row][1])]
    measure_missing(folder, {row: command(row, args) for row in wanted})
    found = {row: values for row, values in read_rows(folder).items() if row in TABLE}
    lines = []
    for row, (title, code, _, dtype, compiled) in TABLE.items():
        if row in found:
            how = f"{code}, torch.compile" if compiled else code
            lines.append([title, how, dtype, *_cells(found[row])])
    header = ["model", "code", "dtype", "training, img/s", "inference, img/s"]
    header += ["peak memory, GiB", "compilation, s"]
    shapes = {(row["batch"], row["image_size"]) for row in found.values() if "batch" in row}
    about = ", ".join(f"batch {batch}, {size} px" for batch, size in sorted(shapes))
    return f"{markdown(header, lines)}\n\n{about}; {where(found)}"


def _cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["failed"], "", "", ""]
    return [
        figure(row["training_images_per_second"]),
        figure(row["inference_images_per_second"]),
        figure(row["peak_memory_gib"], 1),
        figure(row["compile_seconds"]),
    ]


def _by_stage(stages: list[int] | None, variant: str) -> bool | tuple[bool, ...] | None:
    """Returns `model.remat` for the value of `--remat`."""
    if not stages:
        return None if stages is None else True
    depths = ModelConfig(variant).architecture(num_classes=2).depths
    return tuple(stage in stages for stage in range(len(depths)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", nargs="+", default=["medmamba_t"], choices=_VARIANTS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument(
        "--remat",
        nargs="*",
        type=int,
        metavar="STAGE",
        help="compute the activations of these stages again, from 0; of all if none is named",
    )
    parser.add_argument("--scan", help="implementation of the scan")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--table", metavar="FOLDER", help="measure and print the rows of TABLE")
    parser.add_argument("--rows", nargs="*", default=["*"], help="patterns of rows of --table")
    parser.add_argument("--official", help="folder that holds the official MedMamba.py")
    args = parser.parse_args()
    if args.table:
        print(table(pathlib.Path(args.table), args))
        return

    rows = []
    for variant in args.variant:
        for dtype in args.dtype:
            config = ModelConfig(
                variant,
                compute_dtype=dtype,
                remat=_by_stage(args.remat, variant),
                scan_implementation=args.scan,
            ).architecture(num_classes=6)
            row = {
                "variant": variant,
                "batch": args.batch,
                "image_size": args.image_size,
                "dtype": dtype,
                "remat": config.remat,
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
