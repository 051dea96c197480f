"""Reads the images of a set from an archive."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from absl import logging

from medmamba_jax.data.images.decoding import open_image
from medmamba_jax.data.public.archives import Files, open_files
from medmamba_jax.data.public.facts import PublicImage
from medmamba_jax.errors import UserError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Entry:
    """The facts about an image without its bytes; see `PublicImage`."""

    filename: str
    label: str
    patient: str = ""
    split: str = ""


def read_listed(
    location: Path, class_names: Sequence[str], entries: Callable[[Files], Mapping[str, Entry]]
) -> Iterator[PublicImage]:
    """Reads the images of an archive or a folder, in the order of `Files.names`.

    Raises:
        zipfile.BadZipFile: an archive is damaged.
        UserError: the files are not those of the set, or a file is not an image.
    """
    with open_files(location) as files:
        listed = entries(files)
        others = [file for file in files.names if file not in listed and is_image(file)]
        if others:
            logging.warning(
                "%s: left %d images out that do not belong to the set, such as %s",
                location,
                len(others),
                others[0],
            )
        for file in files.names:
            if (entry := listed.get(file)) is None:
                continue
            image = files.read(file)
            try:
                open_image(image)
            except ValueError as error:
                raise UserError(
                    f"{file}: {error}. Extract the archive, replace or remove the file, and set"
                    " data.public.manual_dir to the extracted folder"
                ) from error
            yield PublicImage(
                entry.filename, image, class_names.index(entry.label), entry.patient, entry.split
            )


def is_image(name: str) -> bool:
    return name.lower().endswith(_IMAGE_SUFFIXES)
