"""Finds the image files that a user names for prediction."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from medmamba_jax.data.csv_table import read_csv_table
from medmamba_jax.data.sources.image_folder import by_ending, is_hidden, is_image
from medmamba_jax.data.texts import composed
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import expanded

_TABLES = (".csv", ".tsv")
_COLUMN, _LABELS = "path", "label"


def image_paths(places: Sequence[str | Path]) -> list[Path]:
    """Returns the image files that files, folders, patterns and tables name, each of them once.

    Args:
        places: each is an image file; a folder, whose images are found at any depth; a pattern such
            as `scans/**/*.png`; or a CSV table with the column `path`. Paths in a table start at
            the folder of the table. Hidden files, and files in a folder that are no images, are
            left out.

    Returns:
        The paths in the order of `places`; those of a folder or a pattern are sorted.

    Raises:
        FileNotFoundError: there is nothing at one of the places.
        UserError: a folder or a table names no image.
    """
    found: dict[Path, None] = {}
    for place in places:
        path = expanded(place)
        if path.is_dir():
            paths = _images_below(path)
        elif path.suffix.lower() in _TABLES and path.is_file():
            paths = _paths_of(path)
        elif os.path.lexists(path):
            paths = [path]
        else:
            paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            paths = [path for path in paths if path.is_file()]
            if not paths:
                raise MissingFileError(
                    f"there is no {place}: give an image, a folder, a pattern or a CSV table"
                )
        found |= dict.fromkeys(paths)
    return list(found)


def known_classes(
    places: Sequence[str | Path], paths: Sequence[Path], class_names: Sequence[str]
) -> list[str]:
    """Returns the class of each image where the places say it, and "" where they do not.

    A table says it in its column `label`; otherwise the nearest folder with the name of a class
    does.

    Args:
        places: what `image_paths` took.
        paths: what it returned.
        class_names: the classes of the model; any other text is not known.
    """
    of_tables: dict[Path, str] = {}
    for place in map(expanded, places):
        if place.suffix.lower() in _TABLES and place.is_file():
            table = read_csv_table(place)
            if _LABELS in table.header:
                of_tables |= zip(_paths_of(place), table.column(_LABELS), strict=True)
    names = set(class_names)
    return [
        next((name for name in (of_tables.get(path, ""), *_folders(path)) if name in names), "")
        for path in paths
    ]


def _folders(path: Path) -> list[str]:
    """Returns the names of the folders around a file, the nearest first."""
    return [composed(folder.name) for folder in path.absolute().parents]


def _images_below(folder: Path) -> list[Path]:
    found = sorted(Path(top) / name for top, names in _walked(folder) for name in names)
    images = [path for path in found if is_image(path)]
    known = set(images)
    others = [path for path in found if path not in known]
    if not images:
        but = f", but {len(others)} others: {by_ending(others, folder)}" if others else ""
        raise UserError(f"{folder} holds no image file{but}; check the path")
    if others:
        logging.warning(
            "%s: left out %d files that are no images: %s",
            folder,
            len(others),
            by_ending(others, folder),
        )
    return images


def _walked(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder, also behind links, and its files, without what is hidden."""
    known = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(top)) in known:  # a link that leads back
            folders.clear()
            continue
        known.add(place)
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield top, [name for name in files if not is_hidden(name)]


def _paths_of(path: Path) -> list[Path]:
    table = read_csv_table(path)
    if _COLUMN not in table.header:
        raise UserError(
            f"{path} has no column {_COLUMN!r}; its first line is {', '.join(table.header)!r}:"
            f" name the column of the image files so"
        )
    names = table.column(_COLUMN)
    if "" in names:
        raise table.error(names.index(""), f"{_COLUMN!r} is empty; name an image file")
    return [path.parent / name for name in names]
