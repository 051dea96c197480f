"""What the commands that read images share: arguments, a progress bar, and the last lines."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from medmamba_jax.data.texts import for_terminal, printable
from medmamba_jax.runs import SOURCES_OF_MODELS


def add_command(subcommands: Any, name: str, text: str, more: str = "") -> argparse.ArgumentParser:
    """Adds a command that runs a model on images, with RUN, PATH and `--batch-size`.

    Args:
        subcommands: those of a parser.
        name: of the command.
        text: what it does.
        more: text at the end of the help of PATH.
    """
    parser: argparse.ArgumentParser = subcommands.add_parser(name, help=text)
    parser.add_argument("source", metavar="RUN", help=SOURCES_OF_MODELS)
    parser.add_argument(
        "places",
        nargs="+",
        metavar="PATH",
        help=f"images, folders, patterns in quotes, or CSV tables with the column path{more}",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images in a batch; by default the run's own number",
    )
    return parser


def progress(total: int, doing: str) -> Any:
    """Returns a progress bar that counts images, and vanishes at the end."""
    return tqdm(total=total, desc=doing, unit="image", leave=False, disable=None)


def ended(text: str, unreadable: Mapping[str, str], done: str) -> tuple[str, int]:
    """Prints which images could not be read, and why.

    Args:
        text: what the command prints.
        unreadable: path -> why the image could not be read.
        done: what the command does to images, such as "classified".

    Returns:
        The text, and the exit code: 1 if an image could not be read, else 0.
    """
    for name, reason in unreadable.items():
        line = f"not {done}: {printable(name)}: {' '.join(reason.split())}"
        print(for_terminal(line), file=sys.stderr)
    return text, int(bool(unreadable))
