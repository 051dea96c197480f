"""Times a training step and inference of a model in PyTorch: one of timm, or the official MedMamba.

    python -m benchmarks.torch_step --model timm/resnet50 --batch 128 --compile
    python -m benchmarks.torch_step --model official/medmamba_t --official path/to/checkout

The step is the one that `benchmarks.train_step` times. It normalises uint8 images, and computes the
cross-entropy, its gradients and the update of AdamW. With bfloat16 the model runs under autocast.
With float32, products may use TF32, as in JAX by default. On a GPU, images and weights are
channels-last, and cuDNN chooses its fastest algorithms before the first group counts.

`--official` names a folder that holds the official `MedMamba.py`, which is no part of this project.
The file builds its models on a GPU when it is imported, and its scan needs `mamba_ssm`.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

from medmamba_jax.models import VARIANTS

_CLASSES = 6
TIMM, OFFICIAL = "timm", "official"


def build(model: str, image_size: int, official: str | None) -> Any:
    """Returns a model of PyTorch with random weights.

    Args:
        model: `timm/<name>` or `official/<variant>`.
        image_size: one side of its images, in pixels.
        official: the folder of `MedMamba.py`.
    """
    code, _, name = model.partition("/")
    if code == OFFICIAL:
        if official is None:
            raise SystemExit(f"error: {model} needs --official: the folder that holds MedMamba.py")
        path = pathlib.Path(official) / "MedMamba.py"
        spec = importlib.util.spec_from_file_location("official_medmamba", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise SystemExit(f"error: there is no {path}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        variant = VARIANTS[name]
        network = module.VSSM
        del module
        return network(
            depths=list(variant["depths"]), dims=list(variant["dims"]), num_classes=_CLASSES
        )
    import timm

    # A Swin's windows depend on the size of its images.
    options = {"img_size": image_size} if name.startswith("swin") else {}
    return timm.create_model(name, num_classes=_CLASSES, **options)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of one row; see the module."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(0)
    model = build(args.model, args.image_size, args.official).to(device)
    gc.collect()
    layout = torch.channels_last if on_gpu else torch.contiguous_format
    model = model.to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=on_gpu)
    call = torch.compile(model) if args.compile else model
    shape = (args.batch, 3, args.image_size, args.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(0, _CLASSES, (args.batch,), device=device)

    def logits() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            return call((images.float() / 255 - 0.5) / 0.5)

    def take_step() -> None:
        loss = torch.nn.functional.cross_entropy(logits().float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def infer() -> None:
        with torch.inference_mode():
            logits()

    def seconds(run: Callable[[], None]) -> tuple[float, float]:
        """Returns the seconds of the first call, and the median over groups of seconds per call."""
        timings = []
        for group in range(args.groups + 2):
            calls = args.calls if group else 1
            begun = time.perf_counter()
            for _ in range(calls):
                run()
            if on_gpu:
                torch.cuda.synchronize()
            timings.append((time.perf_counter() - begun) / calls)
        return timings[0], statistics.median(timings[2:])

    model.train()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    first, training = seconds(take_step)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    model.eval()
    _, inference = seconds(infer)
    return {
        "model": args.model,
        "batch": args.batch,
        "image_size": args.image_size,
        "dtype": args.dtype,
        "compiled": args.compile,
        "parameters": sum(x.numel() for x in model.parameters()),
        "compile_seconds": first - training if args.compile else None,
        "step_ms": 1e3 * training,
        "training_images_per_second": args.batch / training,
        "inference_images_per_second": args.batch / inference,
        "peak_memory_gib": peak,
    }


def versions() -> dict[str, str]:
    """Returns the versions and the device that a row depends on."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("timm", "mamba_ssm"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    on_gpu = torch.cuda.is_available()
    return found | {"device": torch.cuda.get_device_name() if on_gpu else "cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="timm/<name> or official/<variant>")
    parser.add_argument("--official", help="folder that holds the official MedMamba.py")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--json", help="file for the row")
    args = parser.parse_args()
    row = measure(args)
    print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    if args.json:
        content = {"versions": versions(), "rows": [row]}
        pathlib.Path(args.json).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
