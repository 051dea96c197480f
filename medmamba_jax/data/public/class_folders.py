"""Reads archives that have a folder of images for every class."""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from medmamba_jax.data.public.archives import Files, open_files
from medmamba_jax.data.public.facts import PublicImage
from medmamba_jax.data.public.listing import Entry, is_image, read_listed
from medmamba_jax.errors import UserError


def class_folder_reader(class_names: Sequence[str]) -> Callable[[Path], Iterator[PublicImage]]:
    """Returns the `PublicSet.read` of a set that has a folder for every class."""
    return functools.partial(
        read_listed,
        class_names=class_names,
        entries=functools.partial(_by_class_folder, class_names=class_names),
    )


def count_by_class_folder(location: Path, class_names: Sequence[str]) -> dict[str, int]:
    """Returns class name -> number of images. It reads only the names of the files.

    Raises:
        zipfile.BadZipFile: an archive is damaged.
        UserError: a class has no images, or the class folders occur in more than one place.
    """
    with open_files(location) as files:
        entries = _by_class_folder(files, class_names)
    return collections.Counter(entry.label for entry in entries.values())


def _by_class_folder(files: Files, class_names: Sequence[str]) -> dict[str, Entry]:
    """Lists the images in class folders: path -> entry.

    The class folders may lie at any depth, but must have the same parent.

    Raises:
        UserError: a class has no images, or the class folders occur in more than one place.
    """
    found: dict[str, dict[str, Entry]] = {}
    for file in files.names:
        path = PurePosixPath(file)
        label = path.parent.name
        if is_image(file) and label in class_names:
            entry = Entry(f"{label}/{path.name}", label)
            found.setdefault(str(path.parent.parent), {})[file] = entry
    if len(found) > 1:
        raise UserError(
            f"{'/'.join(class_names)} folders lie in several places {sorted(found)}: keep one of"
            " them"
        )
    entries = next(iter(found.values()), {})
    for class_name in class_names:
        if not any(entry.label == class_name for entry in entries.values()):
            raise UserError(
                f"no PNG or JPEG images in a folder {class_name}: the folder is missing or empty;"
                f" {', '.join(class_names)} must lie side by side"
            )
    return entries
