"""`python -m medmamba_jax.convert IN OUT`: official weights between file formats and our runs.

IN is a `.safetensors`, `.pth` or `.pt` file with official names, or a run's workdir, of which the
best checkpoint is taken. OUT is a file of one of these formats. `.pth` and `.pt` need PyTorch.
"""

import argparse
import dataclasses
import math
import pathlib
import sys

import jax
from flax import nnx

from medmamba_jax.interop import (
    check_suffix,
    load_torch,
    to_torch_state_dict,
    write_state_dict,
)
from medmamba_jax.models import MedMamba, MedMambaConfig


def convert(source: pathlib.Path, target: pathlib.Path, *, overwrite: bool = False) -> str:
    """Loads `source` strictly into a model and writes the model's weights to `target`.

    Returns:
      Lines for people: the architecture, the number of parameters and the file written.

    Raises:
      FileExistsError: `target` exists and `overwrite` is False, or it is `source` itself.
      FileNotFoundError: there is no `source`, or no folder for `target`.
      ImportError: a PyTorch file without PyTorch installed.
      ValueError: an ending is unknown, or `source` holds no MedMamba.
    """
    _check_target(source, target, overwrite)
    config, model = _load(source)
    write_state_dict(to_torch_state_dict(model), target)
    lines = [f"{field.name}: {getattr(config, field.name)}" for field in _shown(config)]
    parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
    count = sum(math.prod(x.shape) for x in parameters)
    return "\n".join([*lines, f"parameters: {count:,}", f"written: {target}"])


def _check_target(source, target, overwrite):
    check_suffix(target)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not a folder; make it first")
    if target.exists():
        if source.exists() and target.samefile(source):
            raise FileExistsError(f"{target} is the input too; give another OUT")
        if not overwrite:
            raise FileExistsError(f"{target} exists; give another OUT, or --overwrite")


def _load(source) -> tuple[MedMambaConfig, MedMamba]:
    if source.is_dir():
        from medmamba_jax.runs import load_best

        return load_best(source)
    return load_torch(source)


def _shown(config):
    """The fields that weights tell; how to train and compute is not in them."""
    told = {"depths", "dims", "num_classes", "in_channels", "block", "patch_size", "d_state"}
    return [field for field in dataclasses.fields(config) if field.name in told]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m medmamba_jax.convert",
        description="Convert MedMamba weights with official names between file formats.",
    )
    parser.add_argument(
        "source", metavar="IN", type=pathlib.Path, help=".safetensors, .pth, .pt or a run's workdir"
    )
    parser.add_argument(
        "target", metavar="OUT", type=pathlib.Path, help=".safetensors, .pth or .pt"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    options = parser.parse_args(arguments)
    try:
        print(convert(options.source, options.target, overwrite=options.overwrite))
    except (ImportError, OSError, ValueError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
