"""`medmamba export RUN --to=FORMAT --output=FILE`: a trained model as a file for others."""

import argparse
import pathlib
from typing import Any

from medmamba_jax.data import LabelledImages
from medmamba_jax.data.texts import printable
from medmamba_jax.errors import DataUnavailableError, UserError
from medmamba_jax.exports import FORMATS, check_target, export, files_of
from medmamba_jax.files import expanded, require_free
from medmamba_jax.runs.sources import (
    SOURCES_OF_MODELS,
    Trained,
    load_trained,
    validation_images,
)

_SHOWN = 3  # images that could not be read


def add_export(subcommands: Any) -> None:
    """Adds `export` to the subcommands of a parser."""
    text = "write a trained model for other programs, with its classes and preprocessing"
    parser = subcommands.add_parser("export", help=text)
    parser.add_argument("source", metavar="RUN", help=SOURCES_OF_MODELS)
    parser.add_argument("--to", required=True, choices=list(FORMATS), help="the format")
    parser.add_argument("--output", required=True, metavar="FILE", type=pathlib.Path)
    parser.add_argument(
        "--licence",
        metavar="TEXT",
        help="the terms of the weights, which depend on the licence of the training images",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> str:
    """Exports a model; returns lines that say what was written, and how it was checked.

    Raises:
        FileExistsError: the file exists, and `--overwrite` is not given.
        UserError: see `export` and `load_trained`.
    """
    path = expanded(options.output)
    check_target(options.to, path)
    for file in files_of(options.to, path):
        require_free(file, overwrite=options.overwrite, source=expanded(options.source))
    trained = load_trained(options.source)
    images, reason = _images(trained)
    found = export(
        trained.predictor,
        options.to,
        path,
        images=images,
        training=trained.training,
        licence=options.licence or trained.licence,
    )
    which = "validation images of the run"
    if found.drawn:
        reason = reason or "no image of the run can be read"
        which = f"images of noise that the program drew ({reason})"
    lines = [f"written: {file}" for file in found.files]
    lines += [f"not read: {printable(text)}" for text in found.unreadable[:_SHOWN]]
    if (more := len(found.unreadable) - _SHOWN) > 0:
        lines.append(f"not read: {more} more images")
    lines.append(
        f"checked: on {found.images} {which} its logits differ by at most {found.difference:.1e}"
        " from those of the model"
    )
    return "\n".join(lines)


def _images(trained: Trained) -> tuple[LabelledImages | None, str]:
    """Returns the run's validation images, or None and the reason why they cannot be read."""
    if trained.run is None:
        return None, "the model is not in a run's folder"
    try:
        return validation_images(trained.run), ""
    except (UserError, DataUnavailableError, OSError) as error:
        return None, f"the run's own cannot be read: {error}"
