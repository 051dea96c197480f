"""Which file of an archive is which image: by class folders, or by a table."""

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from absl import logging

from medmamba_jax.data.decoding import open_image
from medmamba_jax.data.public.archives import Files, open_files
from medmamba_jax.data.public.facts import PublicImage

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is said of an image, but for its bytes; see `PublicImage`."""

    filename: str
    label: str
    patient: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: its cells, and where they stand, for messages."""

    where: str
    cells: Mapping[str, str]


def class_folder_reader(class_names: Sequence[str]) -> Callable[[Path], Iterator[PublicImage]]:
    """Returns the `PublicSet.read` of a set that has a folder for every class."""
    return functools.partial(
        _read_listed,
        class_names=class_names,
        entries=functools.partial(_by_class_folder, class_names=class_names),
    )


def table_reader(
    class_names: Sequence[str],
    *,
    table: str,
    delimiter: str,
    columns: Sequence[str],
    entry: Callable[[Row], Entry],
) -> Callable[[Path], Iterator[PublicImage]]:
    """Returns the `PublicSet.read` of a set whose images a CSV file describes.

    Args:
        class_names: in the order of the labels.
        table: name of the CSV file.
        delimiter: between its cells.
        columns: which have to be there.
        entry: from a row to what it says of its image. Raises ValueError if it says it wrongly.
    """

    def entries(files: Files) -> dict[str, Entry]:
        rows = _table_rows(files, table, columns, delimiter)
        return _by_table(files, rows, class_names, entry)

    return functools.partial(_read_listed, class_names=class_names, entries=entries)


def _read_listed(
    location: Path, class_names: Sequence[str], entries: Callable[[Files], Mapping[str, Entry]]
) -> Iterator[PublicImage]:
    """Reads the images of an archive or a folder, in the order in which they lie there.

    Raises:
        zipfile.BadZipFile: if an archive is damaged.
        ValueError: if the files are not those expected, or one is not an image.
    """
    with open_files(location) as files:
        listed = entries(files)
        others = [file for file in files.names if file not in listed and _is_image(file)]
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
                raise ValueError(
                    f"{file}: {error}. Extract the archive, replace or remove the file, and set"
                    " data.manual_dir to the extracted folder"
                ) from error
            yield PublicImage(
                entry.filename, image, class_names.index(entry.label), entry.patient, entry.split
            )


def _by_class_folder(files: Files, class_names: Sequence[str]) -> dict[str, Entry]:
    """Lists the images in class folders, which may lie at any depth, but side by side.

    Raises:
        ValueError: if a class has no images, or the class folders occur in more than one place.
    """
    found: dict[str, dict[str, Entry]] = {}
    for file in files.names:
        path = PurePosixPath(file)
        label = path.parent.name
        if _is_image(file) and label in class_names:
            entry = Entry(f"{label}/{path.name}", label)
            found.setdefault(str(path.parent.parent), {})[file] = entry
    if len(found) > 1:
        raise ValueError(
            f"{'/'.join(class_names)} folders lie in several places {sorted(found)}: keep one of"
            " them"
        )
    entries = next(iter(found.values()), {})
    for class_name in class_names:
        if not any(entry.label == class_name for entry in entries.values()):
            raise ValueError(
                f"no PNG or JPEG images in a folder {class_name}: the folder is missing or empty;"
                f" {', '.join(class_names)} must lie side by side"
            )
    return entries


def _table_rows(files: Files, name: str, columns: Sequence[str], delimiter: str) -> list[Row]:
    """Reads a CSV file that lies anywhere among the files; blanks around cells are dropped.

    Raises:
        ValueError: if there is not exactly one such file, it is not UTF-8, a column is missing,
            or a row does not have as many cells as the header.
    """
    file = files.only(name)
    try:
        text = files.read(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error})") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [cell.strip() for cell in next(reader, [])]
    if missing := [column for column in columns if column not in header]:
        raise ValueError(f"{file} has no column {missing[0]!r}; it has {header}")
    rows = []
    for cells in reader:
        where = f"{file}, line {reader.line_num}"
        if not cells:
            continue
        if len(cells) != len(header):
            raise ValueError(f"{where}: {len(cells)} cells where the header has {len(header)}")
        values = [cell.strip() for cell in cells]
        rows.append(Row(where, dict(zip(header, values, strict=True))))
    return rows


def _by_table(
    files: Files, rows: Iterable[Row], class_names: Sequence[str], entry: Callable[[Row], Entry]
) -> dict[str, Entry]:
    """Finds the image of every row, in whatever folder it lies.

    Raises:
        ValueError: naming the row, if its class is unknown, its patient is not given, or its
            image is missing, in several places, or in an earlier row, too.
    """
    places: dict[str, list[str]] = {}
    for file in files.names:
        places.setdefault(PurePosixPath(file).name, []).append(file)
    entries: dict[str, Entry] = {}
    for row in rows:
        listed = entry(row)
        found = places.get(listed.filename, [])
        if listed.label not in class_names:
            problem = f"unknown class {listed.label!r}; the classes are {list(class_names)}"
        elif not listed.patient:
            problem = "no patient is given"
        elif not found:
            problem = f"there is no image {listed.filename}"
        elif len(found) > 1:
            problem = f"{listed.filename} lies in several places {found}: keep one of them"
        elif found[0] in entries:
            problem = f"{listed.filename} is in an earlier line, too"
        else:
            entries[found[0]] = listed
            continue
        raise ValueError(f"{row.where}: {problem}")
    return entries


def _is_image(name: str) -> bool:
    return name.lower().endswith(_IMAGE_SUFFIXES)
