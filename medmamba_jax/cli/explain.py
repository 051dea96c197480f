"""`medmamba explain RUN PATH...`: heat maps of what the best checkpoint's answers depend on."""

import argparse
import sys
from typing import Any

from tqdm import tqdm

from medmamba_jax.data.inputs import image_paths
from medmamba_jax.data.texts import for_terminal, printable
from medmamba_jax.explanation.files import explain_files
from medmamba_jax.explanation.methods import METHODS
from medmamba_jax.files import expanded
from medmamba_jax.runs import SOURCES_OF_MODELS, load_predictor


def add_explain(subcommands: Any) -> None:
    """Adds `explain` to the subcommands of a parser."""
    parser = subcommands.add_parser(
        "explain", help="draw heat maps of what a run's answers depend on"
    )
    parser.add_argument("source", metavar="RUN", help=SOURCES_OF_MODELS)
    parser.add_argument(
        "places",
        nargs="+",
        metavar="PATH",
        help="images, folders, patterns in quotes, or CSV tables with the column path",
    )
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
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images in a batch; by default the run's own number",
    )
    parser.set_defaults(run=run_explain)


def run_explain(options: argparse.Namespace) -> tuple[str, int]:
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
    with tqdm(total=len(paths), desc="explaining", unit="image", leave=False, disable=None) as bar:
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
    for name, reason in written.unreadable.items():
        line = f"not explained: {printable(name)}: {' '.join(reason.split())}"
        print(for_terminal(line), file=sys.stderr)
    text = f"{written.count} images in {options.output}"
    return text, int(bool(written.unreadable))
