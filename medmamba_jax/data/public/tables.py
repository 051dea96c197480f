"""Reads archives whose images a CSV file describes."""

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from medmamba_jax.data.public.archives import Files
from medmamba_jax.data.public.facts import PublicImage
from medmamba_jax.data.public.listing import Entry, read_listed
from medmamba_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: its cells, and its place in the file, for messages."""

    where: str
    cells: Mapping[str, str]


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
        class_names: names of the classes, in the order of the labels.
        table: name of the CSV file.
        delimiter: the character between cells.
        columns: the columns that the table must have.
        entry: function that converts a row to the entry of its image. It raises UserError if a cell
            has a value that is not allowed.
    """

    def entries(files: Files) -> dict[str, Entry]:
        rows = _table_rows(files, table, columns, delimiter)
        return _by_table(files, rows, class_names, entry)

    return functools.partial(read_listed, class_names=class_names, entries=entries)


def _table_rows(files: Files, name: str, columns: Sequence[str], delimiter: str) -> list[Row]:
    """Reads a CSV file in any folder. It removes blanks around cells.

    Raises:
        UserError: there is not exactly one file of this name, it is not UTF-8, a column is missing,
            or a row does not have as many cells as the header.
    """
    file = files.only(name)
    try:
        text = files.read(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error})") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}") from error
    header = lines[0][1] if lines else []
    if missing := [column for column in columns if column not in header]:
        raise UserError(f"{file} has no column {missing[0]!r}; it has {header}")
    rows = []
    for number, cells in lines[1:]:
        where = f"{file}, line {number}"
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} cells where the header has {len(header)}")
        rows.append(Row(where, dict(zip(header, cells, strict=True))))
    return rows


def _by_table(
    files: Files, rows: Iterable[Row], class_names: Sequence[str], entry: Callable[[Row], Entry]
) -> dict[str, Entry]:
    """Finds the image of every row, in any folder: path -> entry.

    Raises:
        UserError: the class of a row is unknown, its patient is empty, or its image is missing, in
            several places, or in an earlier row, too. The message names the row.
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
        raise UserError(f"{row.where}: {problem}")
    return entries
