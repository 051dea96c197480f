"""Image files and labels from a CSV table."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from medmamba_jax.data.config import CsvConfig, DataConfig
from medmamba_jax.data.labelled_images import LabelledImages, labelled_files
from medmamba_jax.data.naming import listed
from medmamba_jax.data.sources.class_names import in_natural_order, require_classes
from medmamba_jax.data.sources.csv_table import CsvTable, read_csv_table
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.split_names import split_named
from medmamba_jax.data.weights import are_weights
from medmamba_jax.errors import UserError

_UNKNOWN = ("", "nan")
_YES, _NO = 1.0, 0.0
_SUFFIXES = (".csv", ".tsv", ".txt")


def find_table(config: DataConfig) -> LabelledImages:
    """Reads the table `config.path`, a row for each image; see `CsvConfig` for the columns.

    Paths are relative to the folder of the table, and all files lie below it. A class name is any
    text, including numbers. Classes are sorted as text, but runs of digits by value.

    Raises:
        FileNotFoundError: the table does not exist.
        UserError: the table is damaged, lacks a column, or has a cell that is not allowed. The
            message names the line.
    """
    table, columns = read_csv_table(Path(config.path).expanduser()), config.csv
    names = _image_paths(table, columns.path_column)
    class_names, labels = _labels(table, columns.label_columns)
    splits = table.find(columns.split_column, CsvConfig.split_column)
    groups = table.find(columns.group_column, CsvConfig.group_column)
    if groups is None and columns.group_column:
        _require_no_patients(table)
    weights = table.find(columns.weight_column, CsvConfig.weight_column)
    return labelled_files(
        table.path.parent,
        names,
        labels,
        class_names,
        groups=None if groups is None else _groups(table, groups, columns.group_column),
        weights=None if weights is None else _weights(table, weights, columns.weight_column),
        splits=None if splits is None else _assigned(table, splits, columns.split_column),
        name=table.path.stem,
        description=f"images of the table {table.path}",
    )


def _image_paths(table: CsvTable, column: str) -> list[str]:
    """Returns paths below the table's folder, with "/" between folders."""
    names, missing = [], []
    seen: dict[str, int] = {}
    for row, text in enumerate(table.column(column)):
        path, where = PurePosixPath(text), f"{table.path}, {table.where(row)}"
        if not text:
            raise UserError(f"{where}: the column {column!r} is empty; name an image file")
        if path.is_absolute() or PureWindowsPath(text).is_absolute():
            raise UserError(
                f"{where}: {text} is an absolute path; write it relative to the folder of the"
                " table, or move the table to the images"
            )
        if ".." in path.parts:
            raise UserError(
                f"{where}: {text} leaves the folder of the table; move the table to a folder that"
                " holds all images"
            )
        name = path.as_posix()
        if name in seen:
            raise UserError(
                f"{where}: {text} was in {table.where(seen[name])} already; an image has one row"
            )
        seen[name] = row
        names.append(name)
        if not (table.path.parent / name).is_file():
            backslash = " (write / between folders)" if "\\" in text else ""
            missing.append(f"{text} in {table.where(row)}{backslash}")
    if missing:
        raise UserError(
            f"{table.path} names {len(missing)} image files that are not there: {listed(missing)}."
            f" Paths are relative to {table.path.parent}; add the files or take the rows out"
        )
    return names


def _labels(table: CsvTable, columns: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    if len(columns) > 1:
        return columns, np.stack([_yes_or_no(table, column) for column in columns], axis=1)
    (column,) = columns
    texts = table.column(column)
    for row, text in enumerate(texts):
        if text.casefold() in _UNKNOWN:
            raise UserError(
                f"{table.path}, {table.where(row)}: no class ({column!r} is {text!r}); write one,"
                " or take the row out"
            )
    class_names = in_natural_order(texts)
    require_classes(class_names, f"the column {column!r} of {table.path}")
    index = {name: i for i, name in enumerate(class_names)}
    return class_names, np.array([index[text] for text in texts], np.int32)


def _yes_or_no(table: CsvTable, column: str) -> np.ndarray:
    """Returns 1 for yes, 0 for no and NaN for unknown, float32 (n,)."""
    values = []
    for row, text in enumerate(table.column(column)):
        try:
            value = np.nan if text.casefold() in _UNKNOWN else float(text)
        except ValueError:
            value = np.inf
        if value not in (_YES, _NO, -1.0) and not np.isnan(value):
            raise UserError(
                f"{table.path}, {table.where(row)}: {column!r} is {text!r}; write 1 where the image"
                " shows it, 0 where it does not, nothing or -1 where that is not known"
            )
        values.append(np.nan if value == -1 else value)
    return np.array(values, np.float32)


def _require_no_patients(table: CsvTable) -> None:
    """Refuses a table that seems to name patients in a column of another name."""
    for name in table.header:
        if re.search("patient|subject|person|participant", name, re.IGNORECASE):
            raise UserError(
                f"{table.path} has the column {name!r}: if it names patients, whose images must"
                f" stay in one split, set data.csv.group_column={name}; if not, set"
                " data.csv.group_column=''"
            )


def _groups(table: CsvTable, groups: list[str], column: str) -> np.ndarray:
    for row, group in enumerate(groups):
        if group.casefold() in _UNKNOWN:
            raise UserError(
                f"{table.path}, {table.where(row)}: {column!r} is empty; give each image a patient,"
                " one of its own where none is known"
            )
    return np.array(groups)


def _weights(table: CsvTable, texts: list[str], column: str) -> np.ndarray:
    weights = []
    for row, text in enumerate(texts):
        try:
            weight = float(text)
        except ValueError:
            weight = np.nan
        if not are_weights(weight):
            raise UserError(
                f"{table.path}, {table.where(row)}: {column!r} is {text!r}; write a positive number"
                " (how much the image counts in training; 1 like most), or set"
                " data.csv.weight_column='' if the column means something else"
            )
        weights.append(weight)
    return np.array(weights, np.float32)


def _assigned(table: CsvTable, splits: list[str], column: str) -> np.ndarray:
    for row, split in enumerate(splits):
        if split_named(split) is None:
            raise UserError(
                f"{table.path}, {table.where(row)}: {column!r} is {split!r}; write train, val or"
                " test"
            )
    assigned = np.array([split_named(split) for split in splits])
    for names in (("train",), ("val", "test")):
        if not np.isin(assigned, names).any():
            raise UserError(
                f"{table.path}: no row is for {' or '.join(names)} in the column {column!r}; add"
                " some, or set data.csv.split_column='' to have all images split by the seed"
            )
    return assigned


CSV = Source(
    points_at=f"a table ({', '.join(_SUFFIXES)})",
    recognises=lambda config: Path(config.path).suffix.lower() in _SUFFIXES,
    find=find_table,
)
