"""Reads and writes a CSV file with a header. Errors name the line."""

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from medmamba_jax.data.texts import composed, is_decimal, read_text
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import write_atomically

Value = TypeVar("Value")

_DELIMITERS = (",", ";", "\t", "|")  # the first of those that fit equally well
_COMPARED_ROWS = 20
_GUARDED = re.compile(r"'+[=+@\t\r\n-]")
_FORMULA = re.compile(r"'*[=+@\t\r\n-]")  # with the quotes that were there before


@dataclasses.dataclass(frozen=True)
class CsvTable:
    """The rows of a CSV file, as text in Unicode NFC, without surrounding spaces.

    Attributes:
        path: the file.
        header: names of the columns, all different.
        rows: the texts of each row, one for each column.
        lines: the number of the last line of each row, counted from 1.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """Returns the texts of a column.

        Raises:
            UserError: no column has this name.
        """
        name = composed(name)
        if name not in self.header:
            raise UserError(
                f"{self.path} has no column {name!r}; its first line, which names the columns, is"
                f" {', '.join(self.header)!r}: name the column that is meant (data.csv.path_column,"
                " data.csv.label_column and so on; of inspect --path-column, --label-column)"
            )
        index = self.header.index(name)
        return [row[index] for row in self.rows]

    def parsed(self, name: str, parse: Callable[[str], Value | None], remedy: str) -> list[Value]:
        """Returns what a function makes of the texts of a column.

        Raises:
            UserError: it returns None for a text. The message ends with `remedy`.
        """
        values = []
        for row, text in enumerate(self.column(name)):
            value = parse(text)
            if value is None:
                raise self.error(row, f"{name!r} is {text!r}; {remedy}")
            values.append(value)
        return values

    def has(self, name: str, default: str) -> bool:
        """Returns whether the table has an optional column.

        Args:
            name: the name in the configuration; "" for no column.
            default: the default name in the configuration.

        Raises:
            UserError: no column has a name that differs from the default, or a column has the
                default name in another spelling.
        """
        if not name or (name == default and name not in self.header):
            alike = [other for other in self.header if name and _plain(other) == _plain(name)]
            if alike:
                raise UserError(
                    f"{self.path} has the column {alike[0]!r}, but data looks for {name!r}: rename"
                    " the column, or set the name to look for, or '' to do without"
                )
            return False
        self.column(name)
        return True

    def where(self, row: int) -> str:
        """Names the line of a row in a message."""
        return f"line {self.lines[row]}"

    def error(self, row: int, problem: str) -> UserError:
        """Returns an error that names the file and the line."""
        return UserError(f"{self.path}, {self.where(row)}: {problem}")


def read_csv_table(path: Path) -> CsvTable:
    """Reads a table as spreadsheets and programs write it; see `read_text` for its encoding.

    The cells are separated by what Excel's line `sep=` before the header says. Without this line,
    it is the comma, semicolon, tab or "|" that gives all of the first rows most cells. Rows without
    any text are skipped, and so are columns without any text and name.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is not such a table, two columns have the same name, or there are no
            rows.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the CSV file in it")
    if not path.is_file():
        raise MissingFileError(f"no file {path}: give the path of a CSV file")
    text = read_text(path)
    said = re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE)
    text = text[said.end() :] if said else text
    delimiter = said[1] if said else max(_DELIMITERS, key=lambda each: _fit(text, each))
    reader = _reader(text, delimiter)
    rows, lines = [], []
    try:
        for row in reader:
            cells = [cell[1:] if _GUARDED.match(cell) else cell.strip() for cell in row]
            if any(cells):
                rows.append(cells)
                lines.append(reader.line_num + bool(said))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num + bool(said)}: {error}; mend the line, or save the"
            " table again"
        ) from error
    return _checked(path, rows, lines)


def write_csv_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table with commas, in UTF-8.

    A spreadsheet would run a text such as `=1+1` as a formula. So a text that begins with one of
    `= + - @`, a tab or a line end, and is no number, gets a single quote in front, which
    `read_csv_table` takes away again.
    """
    write_atomically(path, csv_text(header, rows))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns the content of the file that `write_csv_table` writes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([_guarded(cell) for cell in row] for row in (header, *rows))
    return text.getvalue()


def _guarded(cell: object) -> object:
    formula = isinstance(cell, str) and _FORMULA.match(cell) and not is_decimal(cell)
    return f"'{cell}" if formula else cell


def _reader(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _fit(text: str, delimiter: str) -> tuple[bool, int]:
    """Returns whether a delimiter gives the first rows equally many cells, and how many."""
    counts = []
    try:
        for row in itertools.islice(filter(None, _reader(text, delimiter)), _COMPARED_ROWS):
            counts.append(len(row))
    except csv.Error:
        pass  # the rows before the error count
    return counts[:1] > [1] and len(set(counts)) == 1, max(counts[:1], default=0)


def _checked(path: Path, rows: list[list[str]], lines: list[int]) -> CsvTable:
    if len(rows) < 2:
        raise UserError(
            f"{path} holds {'only one line' if rows else 'nothing'}: a line that names the columns"
            " and a line for each image are needed"
        )
    width = len(rows[0])
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise UserError(
                f"{path}, line {line} has {len(row)} cells, the header {width}: quote cells that"
                " hold the separator, and fill in what is missing"
            )
    used = [i for i, cells in enumerate(zip(*rows, strict=True)) if any(cells)]
    header, *rows = [[row[i] for i in used] for row in rows]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}, line {lines[0]}: two columns are called {twice[0]!r}; rename one")
    return CsvTable(path, tuple(header), rows, lines[1:])


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()
