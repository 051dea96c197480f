"""`medmamba explain RUN PATH...`: heat maps of what the best checkpoint's answers depend on."""

import argparse
from typing import Any

from medmamba_jax.cli.images import add_command, ended, progress
from medmamba_jax.data.inputs import image_paths
from medmamba_jax.explanation.files import explain_files
from medmamba_jax.explanation.methods import METHODS
from medmamba_jax.files import expanded
from medmamba_jax.runs import load_predictor


def add_explain(subcommands: Any) -> None:
    """Adds `explain` to the subcommands of a parser."""
    parser = add_command(subcommands, "explain", "draw heat maps of what a run's answers depend on")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="a new folder for maps and pictures"
    )
    parser.add_argument(
        "--method", default="grad_cam", choices=tuple(METHODS), help="by default grad_cam"
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="the class that the maps explain; by default the likeliest one of each image",
    )
    parser.add_argument(
        "--stage",
        type=int,
        default=-1,
        metavar="N",
        help="the stage that grad_cam, grad_cam++ and receptive_field look at, from 0; by default"
        " the last one",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier call wrote into FOLDER"
    )
    parser.set_defaults(run=explain)


def explain(options: argparse.Namespace) -> tuple[str, int]:
    """Explains images, and writes what `explain_files` says.

    Returns:
        The text to print, and the exit code: 1 if a file could not be read, else 0.

    Raises:
        FileExistsError: the folder is not empty, and `--overwrite` is not given.
        FileNotFoundError: there is no such run or image.
        UserError: an argument does not fit the run.
    """
    predictor = load_predictor(options.source, batch_size=options.batch_size)
    paths, folder = image_paths(options.places), expanded(options.output)
    with progress(len(paths), "explaining") as bar:
        written = explain_files(
            predictor,
            paths,
            folder,
            method=options.method,
            class_name=options.class_name,
            stage=options.stage,
            overwrite=options.overwrite,
            progress=bar.update,
        )
    return ended(f"{written.count} images in {options.output}", written.unreadable, "explained")
