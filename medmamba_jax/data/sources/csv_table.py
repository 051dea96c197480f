"""Reads a CSV file with a header. Errors name the line."""

import csv
import dataclasses
import io
import re
from pathlib import Path

from medmamba_jax.errors import UserError

_DELIMITERS = (",", ";", "\t")


@dataclasses.dataclass(frozen=True)
class CsvTable:
    """The rows of a CSV file, as text without surrounding spaces.

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
        if name not in self.header:
            raise UserError(
                f"{self.path} has no column {name!r}; its first line, which names the columns, is"
                f" {', '.join(self.header)!r}: name the column that is meant (data.csv.path_column,"
                " data.csv.label_column and so on; of inspect --path-column, --label-column)"
            )
        index = self.header.index(name)
        return [row[index] for row in self.rows]

    def find(self, name: str, default: str) -> list[str] | None:
        """Returns the texts of an optional column.

        Args:
            name: the name in the configuration; "" for no column.
            default: the default name in the configuration.

        Returns:
            The texts; None if `name` is "", or if it is the default and no column has this name.

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
            return None
        return self.column(name)

    def where(self, row: int) -> str:
        """Names the line of a row in a message."""
        return f"line {self.lines[row]}"


def read_csv_table(path: Path) -> CsvTable:
    """Reads a comma-, semicolon- or tab-separated file in UTF-8.

    The delimiter is the one of the three that occurs most often in the first line. Empty lines are
    skipped.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is not such a table, two columns have the same name, or there are no
            rows.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the CSV file in it")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the path of a CSV file")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} is not UTF-8 text (line {line}): save it as CSV in UTF-8"
        ) from error
    delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if row:
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}; mend the line, or save the table again"
        ) from error
    return _checked(path, rows, lines)


def _checked(path: Path, rows: list[list[str]], lines: list[int]) -> CsvTable:
    if len(rows) < 2:
        raise UserError(
            f"{path} holds {'only one line' if rows else 'nothing'}: a line that names the columns"
            " and a line for each image are needed"
        )
    header = tuple(rows.pop(0))
    first_line = lines.pop(0)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(
            f"{path}, line {first_line}: two columns are called {twice[0]!r}; rename one"
        )
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {line} has {len(row)} cells, the header {len(header)}: quote cells"
                " that hold the separator, and fill in what is missing"
            )
    return CsvTable(path, header, rows, lines)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()
