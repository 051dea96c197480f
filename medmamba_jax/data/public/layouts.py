"""Reads the images of a public set from the files of the publisher, in each layout of `facts`."""

import csv
import dataclasses
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from absl import logging

from medmamba_jax.data.images.decoding import open_image
from medmamba_jax.data.npz_file import StoredArray, stored_array
from medmamba_jax.data.public.archives import Files, open_files
from medmamba_jax.data.public.facts import Npz, PublicSet, Table
from medmamba_jax.data.public.obtaining import ACCEPT
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.errors import UserError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Entry:
    """The facts about an image.

    Attributes:
        filename: a unique name of the image. It does not depend on how the user got the archive.
        label: the name of its class.
        patient: the publisher's id of the patient; "" if the set has none.
        split: the publisher's own split, "train", "val" or "test"; "" if the set has none.
    """

    filename: str
    label: str
    patient: str = ""
    split: str = ""


def read_images(
    public_set: PublicSet, location: Path, accept_changed: bool = False
) -> Iterator[tuple[Entry, bytes | np.ndarray]]:
    """Reads the images of a set, one at a time.

    Args:
        public_set: the set.
        location: the archive, or a folder that holds it or its files.
        accept_changed: accept numbers of images that `PublicSet.mistaken` rejects.

    Yields:
        The facts about an image, and the bytes of its file; of a set in the layout `Npz` an array.

    Raises:
        zipfile.BadZipFile, zlib.error, EOFError, OSError: a file is damaged.
        UserError: the files are not those of the set, or a file is not an image.
    """
    if isinstance(public_set.layout, Npz):
        yield from _read_npz(public_set, public_set.layout, location)
        return
    with open_files(location) as files:
        if isinstance(public_set.layout, Table):
            entries = _by_table(files, public_set.layout, public_set.class_names)
        else:
            entries = _by_class_folder(files, public_set.class_names)
        if len(entries) in public_set.mistaken and not accept_changed:
            raise UserError(f"{public_set.mistaken[len(entries)]}, or {ACCEPT}")
        others = [file for file in files if file not in entries and _is_image(file)]
        if others:
            logging.warning(
                "%s: left %d images out that do not belong to the set, such as %s",
                location,
                len(others),
                others[0],
            )
        for file, read in files.items():
            if file in entries:
                yield entries[file], _checked(file, read())


def _checked(file: str, image: bytes) -> bytes:
    try:
        open_image(image)
    except ValueError as error:
        raise UserError(
            f"{file}: {error}. Extract the archive, replace or remove the file, and set"
            " data.public.manual_dir to the extracted folder"
        ) from error
    return image


def _is_image(file: str) -> bool:
    return file.lower().endswith(_IMAGE_SUFFIXES)


def _by_class_folder(files: Files, class_names: Sequence[str]) -> dict[str, Entry]:
    """Returns the images in class folders, which lie side by side at any depth: path -> facts."""
    found: dict[str, dict[str, Entry]] = {}
    for file in files:
        path = PurePosixPath(file)
        label = path.parent.name
        if _is_image(file) and label in class_names:
            entry = Entry(f"{label}/{path.name}", label)
            found.setdefault(str(path.parent.parent), {})[file] = entry
    if len(found) > 1:
        raise UserError(
            f"{'/'.join(class_names)} folders lie in several places {sorted(found)}: keep one of"
            " them"
        )
    entries = next(iter(found.values()), {})
    present = {entry.label for entry in entries.values()}
    for class_name in class_names:
        if class_name not in present:
            raise UserError(
                f"no PNG or JPEG images in a folder {class_name}: the folder is missing or empty;"
                f" {', '.join(class_names)} must lie side by side"
            )
    return entries


def _by_table(files: Files, table: Table, class_names: Sequence[str]) -> dict[str, Entry]:
    """Returns the image of each row, which lies in any folder: path -> facts."""
    places: dict[str, list[str]] = {}
    for file in files:
        places.setdefault(PurePosixPath(file).name, []).append(file)
    entries: dict[str, Entry] = {}
    for where, cells in _rows(files, places, table):
        split = table.split_names.get(cells[table.split]) if table.split else ""
        if split is None:
            raise UserError(
                f"{where}: the column {table.split} holds {cells[table.split]!r}, not"
                f" {' or '.join(table.split_names)}"
            )
        entry = Entry(
            cells[table.image] + table.suffix, cells[table.label], cells[table.patient], split
        )
        found = places.get(entry.filename, [])
        if entry.label not in class_names:
            problem = f"unknown class {entry.label!r}; the classes are {list(class_names)}"
        elif not entry.patient:
            problem = "no patient is given"
        elif not found:
            problem = f"there is no image {entry.filename}"
        elif len(found) > 1:
            problem = f"{entry.filename} lies in several places {found}: keep one of them"
        elif found[0] in entries:
            problem = f"{entry.filename} is in an earlier line, too"
        else:
            entries[found[0]] = entry
            continue
        raise UserError(f"{where}: {problem}")
    return entries


def _rows(
    files: Files, places: dict[str, list[str]], table: Table
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the place of each row, for messages, and its cells without blanks around them."""
    found = places.get(table.file, [])
    if len(found) != 1:
        problem = f"in several places {found}: keep one of them" if found else "not there"
        raise UserError(f"the file {table.file} is {problem}")
    file = found[0]
    try:
        text = files[file]().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error})") from error
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=table.delimiter)
    try:
        header = [cell.strip() for cell in next(filter(None, rows), [])]
        for column in (table.patient, table.image, table.label, table.split):
            if column and column not in header:
                raise UserError(f"{file} has no column {column!r}; it has {header}")
        for cells in filter(None, rows):
            where = f"{file}, line {rows.line_num}"
            if len(cells) != len(header):
                raise UserError(f"{where}: {len(cells)} cells where the header has {len(header)}")
            yield where, dict(zip(header, map(str.strip, cells), strict=True))
    except csv.Error as error:
        raise UserError(f"{file}, line {rows.line_num}: {error}") from error


def _read_npz(
    public_set: PublicSet, layout: Npz, location: Path
) -> Iterator[tuple[Entry, np.ndarray]]:
    if location.is_dir():
        raise UserError(f"it holds no file {public_set.archive.name}")
    with zipfile.ZipFile(location) as npz:
        images, labels = {}, {}
        for split in SPLITS:  # check everything before the first image
            images[split] = array = stored_array(npz, f"{split}_images")
            expected = (*array.shape[:1], *layout.shape)
            if array.dtype != np.uint8 or array.shape != expected:
                raise UserError(f"{array.name} is {array}, but should be uint8 {expected}")
            labels[split] = _labels(npz, array, f"{split}_labels", len(public_set.class_names))
        for split in SPLITS:
            for i, pixels in enumerate(images[split].rows()):
                label = public_set.class_names[labels[split][i]]
                yield Entry(f"{split}_images[{i:06d}]", label, split=split), pixels


def _labels(npz: zipfile.ZipFile, images: StoredArray, name: str, num_classes: int) -> np.ndarray:
    array = stored_array(npz, name)
    labels = array.load_for(images)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        count = len(labels)
        raise UserError(f"{name} is {array}, but should be integers ({count}, 1) or ({count},)")
    for wrong in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
        raise UserError(
            f"{name}[{wrong}] is {labels[wrong]}, but there are {num_classes} classes"
            f" (0..{num_classes - 1})"
        )
    return labels
