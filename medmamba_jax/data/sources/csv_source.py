"""Image files and labels from a CSV table."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from absl import logging

from medmamba_jax.data.config import CsvConfig, DataConfig
from medmamba_jax.data.csv_table import CsvTable, read_csv_table
from medmamba_jax.data.images.formats import IMAGE_SUFFIXES
from medmamba_jax.data.labelled_images import LabelledImages, labelled_files
from medmamba_jax.data.naming import listed
from medmamba_jax.data.sources.class_names import numbered
from medmamba_jax.data.sources.links import note_links
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.split_names import split_named
from medmamba_jax.data.texts import MISSING, one_spelling, printable
from medmamba_jax.data.weights import are_weights
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import expanded

_MEANINGS = {1.0: 1.0, 0.0: 0.0, -1.0: np.nan}  # of numbers in a column of yes and no
_WRITE_YES_OR_NO = (
    "write 1 where the image shows it, 0 where it does not, nothing or -1 where that is not known"
)
_WRITE_PATIENT = "give each image a patient, one of its own where none is known"
_WRITE_WEIGHT = (
    "write a positive number (how much the image counts in training; 1 like most), or set"
    " data.csv.weight_column='' if the column means something else"
)
_SUFFIXES = (".csv", ".tsv", ".txt")


def find_table(config: DataConfig) -> LabelledImages:
    """Reads the table `config.path`, a row for each image; see `CsvConfig` for the columns.

    A class name is any text, including numbers: 3 and 3.0 are one class. Classes are sorted as
    text, but runs of digits by value.

    Raises:
        FileNotFoundError: the table or the folder of its images does not exist.
        UserError: the table is damaged, lacks a column, or has a cell that is not allowed. The
            message names the line.
    """
    table, columns = read_csv_table(expanded(config.path)), config.csv
    root = (expanded(columns.images) if columns.images else table.path.parent).absolute()
    if not root.is_dir():
        raise MissingFileError(f"no folder {root}: set data.csv.images to the folder of images")
    files = _files(table, columns, root)
    note_links(root, files)
    class_names, labels = _labels(table, columns)
    known: dict[str, Any] = {}
    if table.has(columns.group_column, CsvConfig.group_column):
        known["groups"] = np.array(table.parsed(columns.group_column, _patient, _WRITE_PATIENT))
    elif columns.group_column and not config.group_tag:
        _require_no_patients(table)
    if table.has(columns.weight_column, CsvConfig.weight_column):
        known["weights"] = np.array(table.parsed(columns.weight_column, _weight, _WRITE_WEIGHT))
    if table.has(columns.split_column, CsvConfig.split_column):
        known["splits"] = _splits(table, columns.split_column)
    return labelled_files(
        root,
        files,
        labels,
        class_names,
        name=table.path.stem,
        description=f"images of the table {table.path}",
        **known,
    )


def _files(table: CsvTable, columns: CsvConfig, root: Path) -> list[str]:
    """Returns paths below the root as they are on disk, with "/" between folders."""
    names, missing = [], []
    seen: dict[str, int] = {}
    for row, text in enumerate(table.column(columns.path_column)):
        path = PurePosixPath(text)
        if not text:
            raise table.error(
                row, f"the column {columns.path_column!r} is empty; name an image file"
            )
        if columns.absolute_paths and Path(text).is_absolute():
            path = PurePosixPath(Path(text).as_posix())
            path = path.relative_to(root) if path.is_relative_to(root) else path
        elif path.is_absolute() or PureWindowsPath(text).is_absolute():
            raise table.error(
                row,
                f"{text} is an absolute path; write it relative to {root}, set"
                " data.csv.images to the folder of the images, or data.csv.absolute_paths=True",
            )
        if ".." in path.parts:
            raise table.error(
                row,
                f"{text} leaves the folder {root}; set data.csv.images to a folder that"
                " holds all images, or move the table to one",
            )
        name = path.as_posix()
        if name in seen:
            raise table.error(
                row, f"{text} was in {table.where(seen[name])} already; an image has one row"
            )
        seen[name] = row
        names.append(name)
    on_disk = _on_disk(root, names)
    for row, name in enumerate(on_disk):
        if not (root / name).is_file() and not (root / name).is_symlink():
            backslash = " (write / between folders)" if "\\" in name else ""
            missing.append(f"{name} in {table.where(row)}{backslash}")
    if missing:
        raise UserError(
            f"{table.path} names {len(missing)} image files that are not there: {listed(missing)}."
            f"{_without_ending(root, on_disk)} Paths are relative to {root}; set data.csv.images to"
            " another folder, add the files, or take the rows out"
        )
    return on_disk


def _without_ending(root: Path, names: list[str]) -> str:
    """Returns a hint if the first file that is not there has an ending on the disk, else ""."""
    first = next(name for name in names if not (root / name).is_file())
    for suffix in IMAGE_SUFFIXES:
        if (root / (first + suffix)).is_file():
            return f" But {first}{suffix} is there: write the ending into the table, too."
    return ""


def _on_disk(root: Path, names: list[str]) -> list[str]:
    """Returns the names as the disk spells them, where it does not spell them in Unicode NFC."""
    unlike = [name for name in names if not name.isascii() and not (root / name).is_file()]
    if not unlike:
        return names
    found = (path.relative_to(root).as_posix() for path in root.rglob("*"))
    spelled = {printable(path): path for path in found}
    return [spelled.get(name, name) for name in names]


def _labels(table: CsvTable, columns: CsvConfig) -> tuple[tuple[str, ...], np.ndarray]:
    names = columns.label_columns
    if len(names) > 1:
        missing = dict.fromkeys(columns.missing_labels, np.nan)
        cells = [
            table.parsed(name, lambda text: missing.get(text, _yes_or_no(text)), _WRITE_YES_OR_NO)
            for name in names
        ]
        return names, np.array(cells, np.float32).T
    (column,) = names
    texts = table.column(column)
    for row, text in enumerate(texts):
        if text in columns.missing_labels:
            raise table.error(
                row,
                f"no class ({column!r} is {text!r}); write one,"
                " take the row out, or, if a class has this name, set data.csv.missing to the"
                " texts that mean no class",
            )
    spelled = one_spelling(texts)
    if joined := sorted(
        {f"{old} as {new}" for old, new in zip(texts, spelled, strict=True) if old != new}
    ):
        logging.warning("%s writes classes in several ways: read %s", table.path, listed(joined))
    return numbered(spelled, f"the column {column!r} of {table.path}")


def _yes_or_no(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return _MEANINGS.get(value, np.nan if np.isnan(value) else None)


def _require_no_patients(table: CsvTable) -> None:
    """Refuses a table that seems to name patients in a column of another name."""
    for name in table.header:
        if re.search("patient|subject|person|participant", name, re.IGNORECASE):
            raise UserError(
                f"{table.path} has the column {name!r}: if it names patients, whose images must"
                f" stay in one split, set data.csv.group_column={name}; if not, set"
                " data.csv.group_column=''"
            )


def _patient(text: str) -> str | None:
    return None if text in MISSING else text


def _weight(text: str) -> float | None:
    try:
        return float(text) if are_weights(float(text)) else None
    except ValueError:
        return None


def _splits(table: CsvTable, column: str) -> np.ndarray:
    assigned = np.array(table.parsed(column, split_named, "write train, val or test"))
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
