"""A run's folder: the lock on it, and the settings that may change between two starts."""

import csv
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from medmamba_jax.data import Dataset, LabelledImages
from medmamba_jax.data.naming import listed
from medmamba_jax.data.splits.split_table import trained_on
from medmamba_jax.errors import UserError
from medmamba_jax.files import write_atomically
from medmamba_jax.locking import Lock, hold
from medmamba_jax.runs.description import CONTENT_FORMAT, RunDescription, plain

CHECKPOINTS = "checkpoints"
SPLIT_TABLE = "split.csv"
DUPLICATES = "duplicates.csv"

# Settings that may change between two starts of a run, and when a run is evaluated. Different
# images, which some of these could bring, show in `RunDescription.images_sha256`.
MAY_CHANGE = (
    *("data.path", "data.split_file", "data.public.data_dir", "data.public.manual_dir"),
    *("data.num_workers", "data.cache", "data.cache_dir", "data.audit", "data.allow_overlap"),
    *("data.allow_contradictions", "data.group_similar"),
    *("train.epochs", "train.patience", "train.keep_every", "train.shard_state"),
    *("train.checkpoint_minutes", "train.nonfinite"),
    *("results.resamples", "results.seed", "results.report"),
)


def hold_workdir(workdir: pathlib.Path) -> Lock:
    """Makes the folder and keeps other processes from training in it until the lock is closed.

    Raises:
        OSError: the folder cannot be made or written to.
        UserError: another process is training there.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    held = hold(workdir / "lock")
    if held is None:
        raise UserError(
            f"another process is training in {workdir}: wait until it ends, or give another"
            " --workdir"
        )
    return held


def check_same_settings(
    workdir: pathlib.Path, config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> RunDescription:
    """Checks that the run in a folder can be continued with these settings.

    Args:
        workdir: the run's folder.
        config: the configuration of the run that is about to start there, as a dictionary.
        defaults: the default configuration, for keys that the run's version did not have.

    Returns:
        The run there.

    Raises:
        UserError: an early version started the run, or a setting outside `MAY_CHANGE` differs.
    """
    old = RunDescription.read(workdir)
    if old.format == 1:
        raise UserError(
            f"an earlier version of medmamba_jax started the run in {workdir}, whose epochs had"
            " fewer steps; it can be evaluated, but not continued: give another --workdir"
        )
    new, defaults = (json.loads(json.dumps(values, default=plain)) for values in (config, defaults))
    _refuse(workdir, _differences(flat(defaults) | flat(old.config), flat(new)))
    return old


def check_same_images(
    workdir: pathlib.Path, old: RunDescription, new: RunDescription, dataset: Dataset
) -> None:
    """Checks that the images of the run in a folder are those of a new run.

    Args:
        workdir: the run's folder.
        old: the run there.
        new: the run that is about to start there.
        dataset: its images.

    Raises:
        UserError: the images differ.
    """
    _refuse(workdir, differing_images(workdir, old, new, dataset.splits))


def _refuse(workdir: pathlib.Path, differences: list[str]) -> None:
    if differences:
        raise UserError(
            f"{workdir} holds another run: {'; '.join(differences)}. Give another --workdir, "
            "or the settings that run was started with"
        )


def write_description(
    workdir: pathlib.Path, description: RunDescription, versions: Mapping[str, str]
) -> None:
    """Writes `run.json`, and `versions.json` beside it."""
    description.write(workdir)
    write_atomically(workdir / "versions.json", json.dumps(dict(versions), indent=2) + "\n")


def warn_of_trained_images(
    workdir: pathlib.Path, splits: Mapping[str, LabelledImages]
) -> dict[str, int]:
    """Warns if images to be evaluated are among those that a run was trained on.

    Args:
        workdir: the run's folder.
        splits: the images to be evaluated. Their content hashes are read if they are not known.

    Returns:
        Name -> how many of its images are training images.
    """
    table = workdir / SPLIT_TABLE
    found = trained_on(table, splits) if table.is_file() else {}
    for name, rows in found.items():
        if rows:
            split = splits[name]
            logging.warning(
                "%d of %d %s images are training images of %s, so that their results say little"
                " about new images: %s",
                len(rows),
                len(split),
                name,
                workdir,
                listed([split.describe(row) for row in rows]),
            )
    return {name: len(rows) for name, rows in found.items()}


def differing_images(
    workdir: pathlib.Path,
    old: RunDescription,
    new: RunDescription,
    splits: Mapping[str, LabelledImages],
) -> list[str]:
    """Returns how the images of a run differ from those here, one phrase for each difference.

    An earlier version has described the content of images in another way. Then only the names in
    the run's table of splits are compared.

    Args:
        workdir: the run's folder.
        old: the run there.
        new: the same run with the images here.
        splits: the images here.
    """
    if old.task != new.task:
        return [f"the labels were {old.task}, are {new.task}"]
    if old.class_names != new.class_names:
        return [f"classes were {old.class_names}, are {new.class_names}"]
    before, now = old.images_sha256, new.images_sha256
    if old.format < CONTENT_FORMAT:
        logging.warning(
            "an earlier version started the run in %s: its images are compared by name only",
            workdir,
        )
        before, now = _names(workdir / SPLIT_TABLE, splits, before)
    return [
        *(f"there was no split {name!r}" for name in now if name not in before),
        *(f"the split {name!r} is missing" for name in before if name not in now),
        *(
            f"the images of split {name!r} changed"
            for name in before
            if name in now and now[name] != before[name]
        ),
    ]


def _names(
    table: pathlib.Path, splits: Mapping[str, LabelledImages], known: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns split -> names of its files: those of the table, and those here."""
    now = {
        name: set(split.names if split.files is None else split.files)
        for name, split in splits.items()
    }
    if not table.is_file():  # the first versions wrote none
        return dict.fromkeys(known), dict.fromkeys(now)
    before: dict[str, Any] = {name: set() for name in known}
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            before.setdefault(row["split"], set()).add(row["path"])
    return {name: before[name] for name in known}, now


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one, with dotted keys such as "data.csv.label_column"."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if unknown := sorted(before.keys() - now.keys()):
        logging.warning("the run has settings that this version ignores: %s", ", ".join(unknown))
    fixed = [key for key in now if key not in MAY_CHANGE]
    if now["train.schedule"] == "cosine":
        fixed.append("train.epochs")  # the schedule ends with the last epoch
    return [
        f"{key} was {before[key]!r}, is {now[key]!r}" for key in fixed if now[key] != before[key]
    ]
