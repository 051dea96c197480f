"""Finds finished runs, and reads what they have written: descriptions, results and predictions."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from medmamba_jax.assessment.comparison import point_values
from medmamba_jax.assessment.resampling import Key, keys
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.runs.description import FILE, RunDescription
from medmamba_jax.runs.elsewhere import EVALUATIONS
from medmamba_jax.runs.outputs import StoredOutputs, read_outputs
from medmamba_jax.runs.run import RESULTS
from medmamba_jax.runs.workdir import flat

SEED, FOLD = "train.seed", "data.fold"


@dataclasses.dataclass(frozen=True)
class Finished:
    """The results of a run on a set of images."""

    folder: pathlib.Path
    description: RunDescription
    results: dict[str, Any]
    stored: StoredOutputs

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        return flat(self.description.config)

    @property
    def seed(self) -> int:
        return self.settings[SEED]

    @property
    def fold(self) -> str:
        """The setting `data.fold`, such as "2/5"; "" without a cross-validation."""
        return self.settings.get(FOLD, "")

    @property
    def fold_number(self) -> int:
        """The first number of `fold`; 0 without a cross-validation."""
        return int(self.fold.partition("/")[0] or 0)

    @property
    def training_images(self) -> str:
        """The digest of the training images."""
        return self.description.images_sha256.get("train", "")

    @functools.cached_property
    def values(self) -> dict[Key, float]:
        outputs = self.stored.outputs
        return dict(zip(keys(outputs), point_values(outputs), strict=True))


def read_finished(folders: Sequence[pathlib.Path], evaluation: str) -> tuple[list[Finished], str]:
    """Reads the results of runs on the images that all of them have.

    Args:
        folders: runs' folders, or folders of series, whose runs are all taken.
        evaluation: the name of an evaluation elsewhere; "" takes the runs' own images.

    Returns:
        The results, and the split that they are of; "" for an evaluation elsewhere.

    Raises:
        FileNotFoundError: there is no such run, or it has no results.
        UserError: the runs do not have the same classes, or a file is damaged.
    """
    descriptions = {place: RunDescription.read(place) for place in _run_folders(folders)}
    _require_same_classes(descriptions)
    tested = all("test" in run.images_sha256 for run in descriptions.values())
    split = "" if evaluation else "test" if tested else "val"
    return [_read(place, run, split, evaluation) for place, run in descriptions.items()], split


def _run_folders(folders: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the folders of runs; those in a folder of a series in place of this."""
    found: list[pathlib.Path] = []
    for folder in folders:
        inside = [folder]
        if not (folder / FILE).is_file():
            inside = sorted(
                path.parent for path in (*folder.glob(f"*/{FILE}"), *folder.glob(f"*/*/{FILE}"))
            )
        if not inside:
            raise MissingFileError(
                f"{folder} holds no run and no series ({FILE} is missing): give a run's folder"
            )
        found += [path.resolve() for path in inside]
    if twice := [str(path) for path in dict.fromkeys(found) if found.count(path) > 1]:
        raise UserError(f"{twice[0]} is given twice: give each run once")
    return found


def _require_same_classes(descriptions: Mapping[pathlib.Path, RunDescription]) -> None:
    (one, first), *others = descriptions.items()
    for place, other in others:
        if (first.task, first.class_names) != (other.task, other.class_names):
            raise UserError(
                f"{one} has the {first.task} classes {', '.join(first.class_names)}, and {place}"
                f" the {other.task} classes {', '.join(other.class_names)}: summarize runs of the"
                " same classes"
            )


def _read(
    place: pathlib.Path, description: RunDescription, split: str, evaluation: str
) -> Finished:
    if evaluation:
        folder = place / EVALUATIONS / evaluation
        results, table = folder / "results.json", folder / "predictions.csv"
        remedy = f"medmamba evaluate {place} --data=... --name={evaluation}"
    else:
        results, table = (
            place / RESULTS / f"{split}{end}" for end in (".json", "_predictions.csv")
        )
        remedy = f"train it to the end, or run medmamba evaluate {place}"
    for path in (results, table):
        if not path.is_file():
            raise MissingFileError(f"{place} has no {path.relative_to(place)}: {remedy}")
    try:
        values = json.loads(results.read_text(encoding="utf-8"))
        count = values["num_examples"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{results} is damaged ({error}): write it again with medmamba evaluate"
        ) from error
    stored = read_outputs(table, description.task, description.class_names)
    if len(stored.names) != count:
        raise UserError(
            f"{table} has {len(stored.names)} images, and {results.name} is of {count}: write them"
            " again with medmamba evaluate"
        )
    if len(set(stored.names)) < len(stored.names):
        raise UserError(f"{table} names an image twice, so that images cannot be matched by path")
    return Finished(place, description, values, stored)
