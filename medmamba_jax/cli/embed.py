"""`medmamba embed RUN PATH...`: the features of images, and which of them are alike."""

import argparse
from typing import Any

from medmamba_jax.cli.images import add_command, ended, progress
from medmamba_jax.data.inputs import image_paths, known_classes
from medmamba_jax.explanation.embedding import embed_files
from medmamba_jax.files import expanded
from medmamba_jax.runs import load_predictor


def add_embed(subcommands: Any) -> None:
    """Adds `embed` to the subcommands of a parser."""
    parser = add_command(
        subcommands,
        "embed",
        "write the features of images, and draw which images are alike",
        "; folders with the names of classes, or the column label, give the colours",
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="a new folder for what is written"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier call wrote into FOLDER"
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
    with progress(len(paths), "embedding") as bar:
        written = embed_files(
            predictor, paths, folder, classes, bar.update, overwrite=options.overwrite
        )
    return ended(f"{written.count} images in {options.output}", written.unreadable, "embedded")
