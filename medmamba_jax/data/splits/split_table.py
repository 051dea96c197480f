"""`split.csv`: the table with the split of each image of a run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from absl import logging

from medmamba_jax.data.csv_table import read_csv_table, write_csv_table
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.naming import listed
from medmamba_jax.data.split_names import split_named
from medmamba_jax.errors import UserError

_CONTENT = "content"


def write_split_table(path: Path, dataset: Dataset) -> None:
    """Writes a row for each image, or for each file with several frames.

    The columns are path, split, label, group and content (`LabelledImages.contents`), by which
    another run or set finds the images that were trained on.

    If an image is not a file, the path is another name of the image. The label is the name of the
    class. In a multi-label set, it is the names of all classes that the image shows, with "|"
    between them. The group is empty if there are no groups.
    """
    rows = []
    for name, split in dataset.splits.items():
        files = np.asarray(split.names) if split.files is None else split.files
        for row in np.sort(np.unique(files, return_index=True)[1]).tolist():
            group = "" if split.groups is None else split.groups[row]
            rows.append([files[row], name, split.label_name(row), group, split.contents[row]])
    write_csv_table(path, ["path", "split", "label", "group", _CONTENT], rows)


def trained_on(path: Path, splits: Mapping[str, LabelledImages]) -> dict[str, list[int]]:
    """Finds the images whose files are training images of a table of splits.

    It compares the content of files, whatever their names. Tables of earlier versions do not have
    it: then no row is found.

    Args:
        path: `split.csv` of a run.
        splits: any images. Files whose `LabelledImages.contents` are not known are read.

    Returns:
        Name of a split -> its rows that were trained on.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is no table.
    """
    table = read_csv_table(path)
    if _CONTENT not in table.header:
        return {name: [] for name in splits}
    pairs = zip(table.column("split"), table.column(_CONTENT), strict=True)
    known = {content for name, content in pairs if name == "train"}
    return {
        name: [row for row, content in enumerate(split.contents) if content in known]
        for name, split in splits.items()
    }


def read_split_table(
    path: Path, names: Sequence[str], *, gone: Literal["warn", "stop", "allow"] = "warn"
) -> np.ndarray:
    """Reads the split of each image, from the columns path and split.

    Args:
        path: a table that `write_split_table` wrote, or any CSV table with these columns.
        names: the names of the images (n,).
        gone: what to do if the table names images that are not among `names`.

    Returns:
        "train", "val" or "test" for each image (n,).

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the table lacks an image, or train or val; names an image twice, or an unknown
            image if `gone` is "stop"; or two images have the same name.
    """
    table = read_csv_table(path)
    split_of: dict[str, str] = {}
    known = set(names)
    if len(known) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(
            f"two images are called {twice}, so that data.split_file cannot name one of them: leave"
            " it empty"
        )
    unknown = []
    splits = table.parsed("split", split_named, "write train, val or test")
    for row, (name, split) in enumerate(zip(table.column("path"), splits, strict=True)):
        if name in split_of:
            raise table.error(row, f"{name} has a row already; leave one")
        if name not in known:
            unknown.append(f"{name} ({table.where(row)})")
            if gone == "stop":
                raise table.error(
                    row,
                    f"{name} is none of the images; take the row out, set data.split_file"
                    " to the table of these images, or set data.split_strict=False",
                )
        split_of[name] = split
    if unknown and gone == "warn":
        logging.warning(
            "%s names %d images that are not there: %s", path, len(unknown), listed(unknown)
        )
    lacking = [name for name in names if name not in split_of]
    if lacking:
        raise UserError(
            f"{path} lacks {len(lacking)} of the {len(names)} images: {listed(lacking)}; add a row"
            " for each, or leave the images out (data.exclude)"
        )
    assigned = np.array([split_of[name] for name in names])
    for split in ("train", "val"):
        if split not in assigned:
            raise UserError(f"{path} has no row of the split {split}: add some")
    return assigned
