"""What a run's folder says, read for the report; nothing here needs the model or the images."""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from medmamba_jax.assessment.calibration import Calibration, read_calibration
from medmamba_jax.assessment.curves import CURVES
from medmamba_jax.data.csv_table import CsvTable, read_csv_table
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import expanded
from medmamba_jax.models import MedMambaConfig
from medmamba_jax.runs.description import RunDescription
from medmamba_jax.runs.elsewhere import EVALUATIONS
from medmamba_jax.runs.gallery import Entry, read_gallery
from medmamba_jax.runs.log import read_metrics
from medmamba_jax.runs.run import EVALUATED, GALLERY, RESULTS
from medmamba_jax.runs.store import Checkpoints
from medmamba_jax.runs.workdir import CHECKPOINTS, DUPLICATES, SPLIT_TABLE, flat

FEW_IMAGES = 100  # below which the page says that the images are few
FEW_OF_A_CLASS = 20


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results on one set of images.

    Attributes:
        name: "val", "test", or the name of an evaluation elsewhere.
        folder: the folder of the files.
        prefix: the first part of the names of the tables.
        results: what `runs.results.assess` returned, and what the numbers are of.
        elsewhere: whether the images are not the run's own.
    """

    name: str
    folder: pathlib.Path
    prefix: str
    results: Mapping[str, Any]
    elsewhere: bool

    @property
    def epoch(self) -> int:
        """The epoch of the checkpoint that was evaluated."""
        return self.results["epoch"]

    @property
    def chose_checkpoint(self) -> bool:
        """Whether the images chose the checkpoint."""
        return not self.elsewhere and self.name == "val"

    @property
    def images(self) -> int:
        """The number of images."""
        return self.results["num_examples"]

    @property
    def patients(self) -> int | None:
        """The number of patients; None if they are not known."""
        intervals = self.results.get("intervals", {})
        return intervals["units"] if intervals.get("resampled") == "patients" else None

    @functools.cached_property
    def gallery(self) -> list[Entry]:
        """The chosen images."""
        return read_gallery(self.gallery_folder, self.epoch)

    @property
    def gallery_folder(self) -> pathlib.Path:
        """The folder of their pictures."""
        return self.folder / f"{self.prefix}{GALLERY}"

    @functools.cached_property
    def curves(self) -> dict[str, dict[str, list[list[float]]]]:
        """Name in `CURVES` -> class -> the points, without the class; what there is of them."""
        found: dict[str, dict[str, list[list[float]]]] = {}
        for name in CURVES:
            table = _table(self.folder / f"{self.prefix}{name}.csv")
            by_class = found.setdefault(name, {})
            for class_name, *cells in table.rows if table else []:
                by_class.setdefault(class_name, []).append([float(cell) for cell in cells])
        return found

    @property
    def few(self) -> list[str]:
        """What there is so little of that the numbers say little, such as "9 images"."""
        found = [f"{self.images} images"] if self.images < FEW_IMAGES else []
        return found + [
            f"{row['num_examples']} with {name}"
            for name, row in self.results["per_class"].items()
            if 0 < row["num_examples"] < FEW_OF_A_CLASS
        ]


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What a run's folder says.

    Attributes:
        workdir: the folder.
        description: `run.json`.
        versions: `versions.json`.
        log: the rows of `metrics.jsonl`.
        splits: split -> class -> number of images; of a multi-label set an image counts for each
            class that it shows.
        totals: split -> number of images.
        patients: split -> number of patients; empty if they are not known.
        shared_patients: the number of patients with images in two or more splits.
        duplicates: the pairs of equal or nearly equal images; None if nobody looked for them.
        best_epoch: the epoch of the best checkpoint now.
        calibration: what was fitted on the validation split with the checkpoint of `main`.
        own: results on the run's own images.
        elsewhere: results on other images.
    """

    workdir: pathlib.Path
    description: RunDescription
    versions: Mapping[str, str]
    log: list[dict[str, Any]]
    splits: Mapping[str, Mapping[str, int]]
    totals: Mapping[str, int]
    patients: Mapping[str, int]
    shared_patients: int
    duplicates: int | None
    best_epoch: int
    calibration: Calibration | None
    own: Mapping[str, Evaluation]
    elsewhere: list[Evaluation]

    @property
    def main(self) -> Evaluation:
        """The results that the report is about: on test, else on val."""
        return self.own["test" if "test" in self.own else "val"]

    def others(self, evaluation: Evaluation, *, same_checkpoint: bool) -> list[Evaluation]:
        """Returns the other evaluations: all, or those that were made with the same checkpoint."""
        return [
            other
            for other in (*self.own.values(), *self.elsewhere)
            if other is not evaluation and (other.epoch == evaluation.epoch or not same_checkpoint)
        ]

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting, by its dotted name; of an absolute path only the last part."""
        return without_folders(flat(self.description.config))


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with the last part of each absolute path, because pages are for others."""
    return {
        name: value if name.endswith("pattern") else last_part(value)
        for name, value in settings.items()
    }


def last_part(value: Any) -> Any:
    """Returns "\u2026/scans" of an absolute path, also in a list; other values as they are."""
    if isinstance(value, list | tuple):
        return [last_part(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (pathlib.PurePosixPath, pathlib.PureWindowsPath):
        if kind(value).is_absolute():
            return f"\u2026/{kind(value).name}"
    return value


def read_run(workdir: str | pathlib.Path) -> RunFacts:
    """Reads a run's folder.

    Raises:
        FileNotFoundError: the folder holds no run, or the run has no results yet.
        UserError: a file is damaged, or the run did not train a MedMamba.
    """
    workdir = expanded(workdir).resolve()
    description = RunDescription.read(workdir)
    if not isinstance(description.model, MedMambaConfig):
        variant = description.config["model"]["variant"]
        raise UserError(f"only a MedMamba has a report, and {workdir} trained {variant!r}")
    own = {}
    for name in EVALUATED:
        results = _results(workdir / RESULTS / f"{name}.json")
        if results is not None:
            own[name] = Evaluation(name, workdir / RESULTS, f"{name}_", results, False)
    if not own:
        raise MissingFileError(
            f"{workdir} has no results yet: train to the end, or run medmamba evaluate {workdir}"
        )
    elsewhere = []
    for path in sorted((workdir / EVALUATIONS).glob("*/results.json")):
        results = _results(path)
        if results is not None:
            elsewhere.append(Evaluation(path.parent.name, path.parent, "", results, True))
    splits, totals, patients, shared = _counts(workdir / SPLIT_TABLE, description)
    pairs = workdir / DUPLICATES
    main = own.get("test", own.get("val"))
    assert main is not None  # `own` is not empty
    calibration = read_calibration(workdir)
    if calibration is not None and calibration.epoch != main.epoch:
        calibration = None
    return RunFacts(
        workdir=workdir,
        description=description,
        versions=_json(workdir / "versions.json") or {},
        log=read_metrics(workdir),
        splits=splits,
        totals=totals,
        patients=patients,
        shared_patients=shared,
        duplicates=_rows(pairs) if pairs.is_file() else None,
        best_epoch=_best_epoch(workdir) or max(found.epoch for found in own.values()),
        calibration=calibration,
        own=own,
        elsewhere=elsewhere,
    )


def _best_epoch(workdir: pathlib.Path) -> int | None:
    """Returns the epoch of the best checkpoint; None if it is not known."""
    try:
        best = Checkpoints(workdir / CHECKPOINTS).best()
    except UserError:  # its checkpoint is damaged or gone, and the results may still be reported
        return None
    return best.epoch if best else None


def _results(path: pathlib.Path) -> dict[str, Any] | None:
    found = _json(path)
    if found is not None and "epoch" not in found:
        raise UserError(f"{path} is damaged (it names no epoch): evaluate the run again")
    return found


def _json(path: pathlib.Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no names")
        return found
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): evaluate the run again") from error


def _table(path: pathlib.Path) -> CsvTable | None:
    """Reads a table; None if it is missing, or cannot be read, which a warning says."""
    if not path.is_file():
        return None
    try:
        return read_csv_table(path)
    except UserError as error:
        logging.warning("%s is left out of the report: %s", path, error)
        return None


def _rows(path: pathlib.Path) -> int:
    """Counts the rows of a table, which may have none."""
    if len(path.read_bytes().splitlines()) < 2:
        return 0
    table = _table(path)
    return 0 if table is None else len(table.rows)


def _counts(
    path: pathlib.Path, run: RunDescription
) -> tuple[dict[str, dict[str, int]], dict[str, int], dict[str, int], int]:
    """Returns images by split and class, images and patients by split, and shared patients."""
    table = _table(path)
    if table is None:
        return {}, {}, {}, 0
    splits: dict[str, dict[str, int]] = {}
    groups: dict[str, set[str]] = {}
    of_image = table.column("group") if "group" in table.header else [""] * len(table.rows)
    named = any(of_image)
    labels = table.column("label") if "label" in table.header else [""] * len(table.rows)
    totals = collections.Counter(table.column("split"))
    for split, label, group in zip(table.column("split"), labels, of_image, strict=True):
        counts = splits.setdefault(split, dict.fromkeys(run.class_names, 0))
        for name in label.split("|") if run.task == "multilabel" else [label]:
            if name in counts:
                counts[name] += 1
        groups.setdefault(split, set()).add(group)
    in_splits = collections.Counter(group for found in groups.values() for group in found if group)
    shared = sum(count > 1 for count in in_splits.values())
    patients = {k: len(v) for k, v in groups.items()} if named else {}
    return splits, dict(totals), patients, shared
