"""`medmamba convert IN OUT`: official weights between file formats.

IN is a file of weights with official names, such as `.safetensors`, `.pth`, `.ckpt` or `.bin`. OUT
is a `.safetensors`, `.pth` or `.pt` file. All formats but `.safetensors` need PyTorch. For a
run's model there is `medmamba export`.
"""

import argparse
import math
import pathlib
from typing import Any

import jax

from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import require_free
from medmamba_jax.interop import (
    check_writable,
    read_weights,
    weights_to_state_dict,
    write_state_dict,
)

# The fields that weights determine. A file of weights has no settings of training and computation.
SHOWN = ("depths", "dims", "num_classes", "in_channels", "block", "patch_size", "d_state")


def convert(
    source: str | pathlib.Path, target: str | pathlib.Path, *, overwrite: bool = False
) -> str:
    """Reads the weights of `source`, checks that they fit a MedMamba, and writes them to `target`.

    Returns:
      Lines for people: the architecture, the number of parameters and the file written.

    Raises:
      FileExistsError: `target` exists and `overwrite` is False, or it is `source` itself.
      FileNotFoundError: there is no `source`, or no folder for `target`.
      ImportError: a PyTorch file without PyTorch installed.
      UserError: an ending is unknown, or `source` is a folder or holds no MedMamba.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    if source.is_dir():
        raise UserError(
            f"{source} is a folder: the model of a run leaves it by `medmamba export {source}"
            f" --to=FORMAT --output={target}`"
        )
    check_writable(target)
    if not target.parent.is_dir():
        raise MissingFileError(f"{target.parent} is not a folder; make it first")
    require_free(target, overwrite=overwrite, source=source)
    config, params, statistics = read_weights(source)
    write_state_dict(weights_to_state_dict(config, params, statistics), target)
    lines = [f"{field}: {getattr(config, field)}" for field in SHOWN]
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    return "\n".join([*lines, f"parameters: {count:,}", f"written: {target}"])


def add_convert(subcommands: Any) -> None:
    """Adds `convert` to the subcommands of a parser."""
    text = "Convert MedMamba weights with official names between file formats."
    parser = subcommands.add_parser("convert", help=text, description=text)
    parser.add_argument("source", metavar="IN", type=pathlib.Path, help="a file of weights")
    parser.add_argument(
        "target", metavar="OUT", type=pathlib.Path, help=".safetensors, .pth or .pt"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> str:
    return convert(options.source, options.target, overwrite=options.overwrite)
