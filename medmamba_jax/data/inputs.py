"""Finds the image files that a user names for prediction."""

import glob
from collections.abc import Sequence
from pathlib import Path

from medmamba_jax.data.csv_table import read_csv_table
from medmamba_jax.data.images.formats import is_image_file
from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded

_TABLES = (".csv", ".tsv")
_COLUMN = "path"


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
            paths = [path.parent / name for name in read_csv_table(path).column(_COLUMN)]
        elif path.exists():
            paths = [path]
        else:
            paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            paths = [path for path in paths if path.is_file()]
            if not paths:
                raise FileNotFoundError(
                    f"there is no {place}: give an image, a folder, a pattern or a CSV table"
                )
        found |= dict.fromkeys(paths)
    return list(found)


def _images_below(folder: Path) -> list[Path]:
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    images = [path for path in files if is_image_file(path)]
    if not images:
        raise UserError(f"{folder} holds no image file, but {len(files)} others: check the path")
    return images
