"""`medmamba embed RUN PATH...`: the features of images, and which of them are alike."""

import argparse
import sys
from typing import Any

from tqdm import tqdm

from medmamba_jax.data.inputs import image_paths, known_classes
from medmamba_jax.data.texts import for_terminal, printable
from medmamba_jax.explanation.embedding import embed_files
from medmamba_jax.files import expanded
from medmamba_jax.runs import SOURCES_OF_MODELS, load_predictor


def add_embed(subcommands: Any) -> None:
    """Adds `embed` to the subcommands of a parser."""
    parser = subcommands.add_parser(
        "embed", help="write the features of images, and draw which images are alike"
    )
    parser.add_argument("source", metavar="RUN", help=SOURCES_OF_MODELS)
    parser.add_argument(
        "places",
        nargs="+",
        metavar="PATH",
        help="images, folders, patterns in quotes, or CSV tables with the column path; folders"
        " with the names of classes, or the column label, give the colours",
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="a new folder for what is written"
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
    parser.set_defaults(run=embed)


def embed(options: argparse.Namespace) -> tuple[str, int]:
    """Writes what `embed_files` says.

    Returns:
        The text to print, and the exit code: 1 if a file could not be read, else 0.

    Raises:
        FileExistsError: the folder is not empty, and `--overwrite` is not given.
        FileNotFoundError: there is no such run or image.
    """
    predictor = load_predictor(options.source, batch_size=options.batch_size)
    paths, folder = image_paths(options.places), expanded(options.output)
    classes = known_classes(options.places, paths, predictor.class_names)
    with tqdm(total=len(paths), desc="embedding", unit="image", leave=False, disable=None) as bar:
        written = embed_files(
            predictor, paths, folder, classes, bar.update, overwrite=options.overwrite
        )
    for name, reason in written.unreadable.items():
        line = f"not embedded: {printable(name)}: {' '.join(reason.split())}"
        print(for_terminal(line), file=sys.stderr)
    return f"{written.count} images in {options.output}", int(bool(written.unreadable))
