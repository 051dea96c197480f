"""Summarises finished runs: seeds, folds of a cross-validation, and models on the same images.

`summarize` reads descriptions, results and predictions. It never reads a model or an image.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmamba_jax.assessment.comparison import compare_models, number, point_values
from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.assessment.intervals import Bootstrap
from medmamba_jax.assessment.resampling import Key, keys, resampled
from medmamba_jax.data.naming import listed
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import expanded, write_atomically
from medmamba_jax.metrics import Outputs
from medmamba_jax.runs.description import FILE, RunDescription
from medmamba_jax.runs.elsewhere import EVALUATIONS
from medmamba_jax.runs.outputs import StoredOutputs, read_outputs
from medmamba_jax.runs.run import RESULTS
from medmamba_jax.runs.summary_tables import write_summary_csv
from medmamba_jax.runs.workdir import MAY_CHANGE, flat

_IMAGES = "training images"  # among the settings that differ
_SEED, _FOLD = "train.seed", "data.fold"
# Settings that may differ between runs of one model. Those of training are no such settings.
_NOT_OF_MODEL = {name for name in MAY_CHANGE if not name.startswith("train.")} | {_SEED, _FOLD}


@dataclasses.dataclass(frozen=True)
class _Result:
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
        return self.settings[_SEED]

    @property
    def fold(self) -> str:
        """The setting `data.fold`, such as "2/5"; "" without a cross-validation."""
        return self.settings.get(_FOLD, "")

    @functools.cached_property
    def values(self) -> dict[Key, float]:
        outputs = self.stored.outputs
        return dict(zip(keys(outputs), point_values(outputs), strict=True))

    @property
    def model(self) -> str:
        """A text that all runs of one model share.

        It holds the digest of the training images, which differs from fold to fold and is then
        left out; see `require_same_images`.
        """
        kept = {k: v for k, v in self.settings.items() if k not in _NOT_OF_MODEL}
        kept[_FOLD] = self.fold.partition("/")[2]
        images = "" if self.fold else _training_images(self.description)
        return json.dumps([kept, images], sort_keys=True)


@dataclasses.dataclass(frozen=True)
class _Model:
    """Runs that differ only in their seed and their fold.

    Attributes:
        results: the runs, by seed and fold.
        stored: outputs for the same images, in the same order: of each run, which is a seed or a
            fold; or of each seed, where the folds' test images are put together.
        pooled: whether folds are put together.
        name: a short name of the runs' folders.
    """

    results: tuple[_Result, ...]
    stored: tuple[StoredOutputs, ...]
    pooled: bool
    name: str = ""

    @property
    def kind(self) -> str:
        if len(self.results) == 1:
            return "run"
        if not self.results[0].fold:
            return "seeds"
        if not self.pooled:
            return "folds"
        return "folds" if len(self.stored) == 1 else "folds of several seeds"

    @property
    def outputs(self) -> list[Outputs]:
        return [stored.outputs for stored in self.stored]

    @property
    def training_images(self) -> str:
        """The start of the digest of the training images; of each fold, where there are folds."""
        of = {_number(run.fold): _training_images(run.description)[:12] for run in self.results}
        return ", ".join(of[fold] for fold in sorted(of))


def summarize(
    folders: Sequence[str | pathlib.Path],
    output: str | pathlib.Path | None = None,
    *,
    evaluation: str = "",
    settings: ResultsConfig | None = None,
) -> dict[str, Any]:
    """Summarises runs, and compares the models among them.

    Runs on the same training images that differ only in `train.seed` and `data.fold` are one model.
    The folds' test images are
    put together, so that each image counts once. Two models are compared on the same images, which
    are matched by path. The images are the test images where every run has some, else val.

    Args:
        folders: runs' folders, or folders of series, whose runs are all taken.
        output: a folder for `summary.json` and `summary.csv`; it is made. None writes nothing.
        evaluation: the name of an evaluation elsewhere that each run has, `RUN/evaluations/NAME`.
            Its images take the place of the runs' own.
        settings: how intervals are computed; by default that of a new run.

    Returns:
        What `summary.json` holds: facts of the images; `models`, with the values of each run, and
        for each metric `value` with the interval `low`, `high`, and over seeds or folds `mean`,
        `sd` (n - 1), `min` and `max`; `comparisons`, each pair of models, see
        `comparison.compare_models`; and `notes`, sentences on what the numbers do not say.

    Raises:
        FileNotFoundError: there is no such run, or it has no results.
        UserError: the runs do not have the same classes or images, a fold is missing or there
            twice or has other training images with another seed, or a table of predictions is
            damaged.
    """
    places = _run_folders([expanded(folder) for folder in folders])
    descriptions = {place: RunDescription.read(place) for place in places}
    _require_same_classes(descriptions)
    split = "" if evaluation else _common_split(descriptions)
    found = [_read(place, descriptions[place], split, evaluation) for place in places]
    models = _named(_models(found, pooled=not evaluation))
    models = _aligned(models)
    first = models[0].stored[0]
    settings = settings or ResultsConfig()
    bootstrap = Bootstrap(first.patients, settings.resamples, settings.seed)
    outputs = first.outputs
    summary: dict[str, Any] = {
        "images": evaluation or split,
        "elsewhere": bool(evaluation),
        "task": outputs.task,
        "class_names": list(outputs.class_names),
        "num_examples": len(first.names),
        "num_patients": None if first.patients is None else len(set(first.patients.tolist())),
        "synthetic": any(result.results.get("synthetic", False) for result in found),
        "bootstrap": bootstrap.describe(len(first.names)),
        "models": [_summary_of(model, bootstrap) for model in models],
        "comparisons": [
            _comparison(one, other, bootstrap) for one, other in itertools.combinations(models, 2)
        ],
    }
    summary["notes"] = _notes(summary)
    if output is not None:
        folder = expanded(output)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_summary_csv(folder / "summary.csv", summary)
    return summary


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


def require_same_images(descriptions: Mapping[pathlib.Path, RunDescription]) -> None:
    """Raises UserError unless all runs, or all runs of the same fold, share training images."""
    first: dict[str, tuple[pathlib.Path, RunDescription]] = {}
    for place, run in descriptions.items():
        fold = flat(run.config).get(_FOLD, "")
        other, expected = first.setdefault(fold, (place, run))
        if _training_images(run) != _training_images(expected):
            raise UserError(
                f"{other} and {place} were trained on different images"
                f"{f' of the same fold {fold}' if fold else ''}, so they are no seeds of one model:"
                " train one of them again, in a new folder, on the images of the other"
            )


def _training_images(description: RunDescription) -> str:
    return description.images_sha256.get("train", "")


def _common_split(descriptions: Mapping[pathlib.Path, RunDescription]) -> str:
    """Returns "test" where every run has test images, else "val"."""
    have = [place for place, run in descriptions.items() if "test" in run.images_sha256]
    return "test" if len(have) == len(descriptions) else "val"


def _read(place: pathlib.Path, description: RunDescription, split: str, evaluation: str) -> _Result:
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
    except ValueError as error:
        raise UserError(
            f"{results} is damaged ({error}): write it again with medmamba evaluate"
        ) from error
    stored = read_outputs(table, description.task, description.class_names)
    if len(stored.names) != values["num_examples"]:
        raise UserError(
            f"{table} has {len(stored.names)} images, and {results.name} is of"
            f" {values['num_examples']}: write them again with medmamba evaluate"
        )
    if len(set(stored.names)) < len(stored.names):
        raise UserError(f"{table} names an image twice, so that images cannot be matched by path")
    return _Result(place, description, values, stored)


def _models(found: Sequence[_Result], *, pooled: bool) -> list[_Model]:
    """Puts the runs of each model together."""
    groups: dict[str, list[_Result]] = {}
    for result in found:
        groups.setdefault(result.model, []).append(result)
    models = []
    for group in groups.values():
        require_same_images({result.folder: result.description for result in group})
        results = tuple(sorted(group, key=lambda result: (result.seed, _number(result.fold))))
        for one, other in itertools.pairwise(results):
            if (one.seed, one.fold) == (other.seed, other.fold):
                fold = f" and the same fold {one.fold}" if one.fold else ""
                raise UserError(
                    f"{one.folder} and {other.folder} have the same settings, the same seed"
                    f" {one.seed}{fold}: leave one of them out"
                )
        if pooled and results[0].fold:
            by_seed = [
                tuple(of) for _, of in itertools.groupby(results, lambda result: result.seed)
            ]
            models.append(_Model(results, tuple(_pooled(folds) for folds in by_seed), True))
        else:
            models.append(_Model(results, tuple(result.stored for result in results), False))
    return models


def _number(fold: str) -> int:
    return int(fold.partition("/")[0] or 0)


def _pooled(folds: Sequence[_Result]) -> StoredOutputs:
    """Returns the outputs for the test images of all folds of one seed."""
    count = int(folds[0].fold.partition("/")[2])
    there = {_number(result.fold) for result in folds}
    missing = [f"{fold}/{count}" for fold in range(1, count + 1) if fold not in there]
    if missing:
        raise UserError(
            f"of the {count} folds with seed {folds[0].seed}, {', '.join(missing)} is missing:"
            f" train it with --config.data.fold={missing[0]}, or give its folder, too (only"
            f" {', '.join(result.folder.name for result in folds)} given)"
        )
    names = [name for result in folds for name in result.stored.names]
    if len(set(names)) < len(names):
        of: dict[str, pathlib.Path] = {}
        for result in folds:
            for name in result.stored.names:
                if name in of:
                    raise UserError(
                        f"{name} is a test image of two folds, {of[name]} and {result.folder}: the"
                        " folds were made of other images; train them again on the same ones"
                    )
                of[name] = result.folder
    parts = [result.stored for result in folds]
    patients = None
    if all(part.patients is not None for part in parts):
        patients = np.concatenate([part.patients for part in parts])
    outputs = dataclasses.replace(
        parts[0].outputs,
        labels=np.concatenate([part.outputs.labels for part in parts]),
        logits=np.concatenate([part.outputs.logits for part in parts]),
    )
    return StoredOutputs(tuple(names), patients, outputs)


def _aligned(models: Sequence[_Model]) -> list[_Model]:
    """Brings all outputs into the order of the first ones.

    Raises:
        UserError: the images or their labels differ.
    """
    reference, one = models[0].stored[0], models[0]
    patients = next((s.patients for m in models for s in m.stored if s.patients is not None), None)
    if patients is not None and reference.patients is None:
        known = next(s for m in models for s in m.stored if s.patients is not None)
        of = dict(zip(known.names, patients, strict=True))
        if of.keys() == set(reference.names):
            of_reference = np.array([of[name] for name in reference.names])
            reference = dataclasses.replace(reference, patients=of_reference)

    def aligned(stored: StoredOutputs, model: _Model) -> StoredOutputs:
        here, there = set(reference.names), set(stored.names)
        if here != there:
            only = [*sorted(here - there), *sorted(there - here)]
            raise UserError(
                f"{one.name} and {model.name} were not evaluated on the same images:"
                f" {len(here - there)} are only in the first, {len(there - here)} only in the"
                f" second, such as {only[0]}. Give both the same data.split_file, or evaluate both"
                " elsewhere (medmamba evaluate RUN --data=...) and use --evaluation"
            )
        row_of = {name: row for row, name in enumerate(stored.names)}
        moved = stored.take(np.array([row_of[name] for name in reference.names]))
        same = moved.outputs.labels == reference.outputs.labels
        same |= (moved.outputs.labels != moved.outputs.labels) & (
            reference.outputs.labels != reference.outputs.labels
        )  # both are NaN
        wrong = np.flatnonzero(~same.reshape(len(same), -1).all(1))
        if len(wrong):
            raise UserError(
                f"{len(wrong)} images have other labels in {model.name} than in {one.name}:"
                f" {listed([reference.names[row] for row in wrong])}. Evaluate both again with the"
                " same labels"
            )
        return dataclasses.replace(moved, patients=reference.patients)

    return [
        dataclasses.replace(model, stored=tuple(aligned(stored, model) for stored in model.stored))
        for model in models
    ]


def _named(models: Sequence[_Model]) -> list[_Model]:
    """Gives each model the shortest end of its folder's path that no other model has."""
    paths = [_common_path(model) for model in models]
    for i, path in enumerate(paths):
        if paths.count(path) > 1:  # their folders do not tell them apart
            paths[i] = models[i].results[0].folder
    parts = [path.parts for path in paths]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return [
        dataclasses.replace(model, name=name) for model, name in zip(models, names, strict=True)
    ]


def _common_path(model: _Model) -> pathlib.Path:
    """Returns what the paths of a model's runs begin with, such as runs/x of runs/x/seed_0."""
    folders = [str(result.folder) for result in model.results]
    if len(folders) == 1:
        return pathlib.Path(folders[0])
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*folders, strict=False))
    start = "".join(column[0] for column in columns)
    start = re.sub(r"(seed|fold|run)?[-_]?\d*$", "", start).rstrip("/\\_-. ")
    return pathlib.Path(start) if pathlib.Path(start).name else model.results[0].folder


def _summary_of(model: _Model, bootstrap: Bootstrap) -> dict[str, Any]:
    """Returns the entry of a model in `summary.json`."""
    outputs = model.outputs
    names = keys(outputs[0])

    def mean(weights: np.ndarray) -> np.ndarray:
        return np.mean([resampled(each, weights) for each in outputs], axis=0)

    images = len(outputs[0].labels)
    values, intervals = mean(np.ones((1, images)))[:, 0], bootstrap.intervals(mean, images)
    if len(outputs) > 1:
        each = np.stack([point_values(one) for one in outputs])
    else:
        each = np.stack([list(result.values.values()) for result in model.results])
    metrics: dict[Key, dict[str, Any]] = {}
    for row, key in enumerate(names):
        low, high = intervals[row] or (None, None)
        metrics[key] = {"value": number(values[row]), "low": low, "high": high}
        if len(each) > 1:
            column = each[:, row]
            metrics[key] |= {
                "mean": number(column.mean()),
                "sd": number(column.std(ddof=1)),
                "min": number(column.min()),
                "max": number(column.max()),
            }
    runs = [
        {
            "folder": str(result.folder),
            "seed": result.seed,
            "fold": result.fold,
            "epoch": result.results.get("epoch"),
            "num_examples": len(result.stored.names),
            **_nested({key: number(value) for key, value in result.values.items()}),
        }
        for result in model.results
    ]
    return {
        "name": model.name,
        "kind": model.kind,
        "runs": runs,
        **_nested(metrics),
    }


def _comparison(one: _Model, other: _Model, bootstrap: Bootstrap) -> dict[str, Any]:
    """Returns the entry of two models in `summary.json`."""
    settings = [model.results[0].settings for model in (one, other)]
    images = [model.training_images for model in (one, other)]
    folds = any(model.results[0].fold and not model.pooled for model in (one, other))
    differing = {
        key: [values.get(key) for values in settings]
        for key in dict.fromkeys([*settings[0], *settings[1]])
        if key not in (_NOT_OF_MODEL) and settings[0].get(key) != settings[1].get(key)
    }
    return {
        "first": one.name,
        "second": other.name,
        "settings": differing | ({_IMAGES: images} if images[0] != images[1] else {}),
        "seeds": [len({result.seed for result in model.results}) for model in (one, other)],
        **_nested(compare_models(one.outputs, other.outputs, bootstrap, folds=folds)),
    }


def _nested(found: Mapping[Key, Any]) -> dict[str, Any]:
    """Returns `metrics` and `per_class`, as results have them."""
    nested: dict[str, Any] = {"metrics": {}, "per_class": {}}
    for (class_name, name), value in found.items():
        if class_name is None:
            nested["metrics"][name] = value
        else:
            nested["per_class"].setdefault(class_name, {})[name] = value
    return nested


def _notes(summary: Mapping[str, Any]) -> list[str]:
    """Returns what a reader of the numbers must know."""
    kinds = {model["kind"] for model in summary["models"]}
    notes = []
    if summary["synthetic"]:
        notes.append("The images are SYNTHETIC: the numbers say nothing about patients.")
    if summary["images"] == "val" and not summary["elsewhere"]:
        notes.append(
            "These are val images, which chose the checkpoints: on new images the models are worse."
        )
    if summary["num_patients"] is None and not summary["synthetic"]:
        notes.append(
            "Patients are not known, so that every image counts as another patient. If a patient"
            " has several images, intervals are too narrow and p-values too small."
        )
    if kinds & {"seeds", "folds of several seeds"}:
        notes.append(
            "The s.d. says how far training with another seed changes a value. The interval says"
            " how far other patients change the mean of these seeds."
        )
    if kinds & {"folds", "folds of several seeds"}:
        of = "those of all folds' test images together"
        if summary["elsewhere"]:
            of = "means over the folds' models"
        notes.append(
            f"Values of folds with an interval are {of}. The models of the folds share training"
            " images, so that their s.d. is no standard error."
        )
    if any(min(pair["seeds"]) == 1 for pair in summary["comparisons"]):
        notes.append(
            "Intervals and p-values of a difference are for these trained models. They do not say"
            " that training again gives the same difference."
        )
    tests = len(summary["comparisons"]) * len(summary["class_names"])
    if tests > 2:
        notes.append(
            "P-values are not adjusted for the number of comparisons: say beforehand which one"
            " counts, or multiply each by their number."
        )
    return notes
