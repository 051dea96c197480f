"""Summarises finished runs: seeds, folds of a cross-validation, and models on the same images.

`summarize` reads descriptions, results and predictions. It never reads a model or an image.
"""

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmamba_jax.assessment.comparison import compare_models, number, point_values
from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.assessment.intervals import Bootstrap
from medmamba_jax.assessment.resampling import Key, keys, resampled
from medmamba_jax.files import expanded, write_atomically
from medmamba_jax.runs.summaries.finished import read_finished
from medmamba_jax.runs.summaries.models import NOT_OF_MODEL, Model, models_of
from medmamba_jax.runs.summaries.tables import write_summary_csv


def summarize(
    folders: Sequence[str | pathlib.Path],
    output: str | pathlib.Path | None = None,
    *,
    evaluation: str = "",
    settings: ResultsConfig | None = None,
) -> dict[str, Any]:
    """Summarises runs, and compares the models among them.

    Runs on the same training images that differ only in `train.seed` and `data.fold` are one model,
    if they augment images at the same place (`RunDescription.augmented_on`).
    The folds' test images are put together, so that each image counts once. Two models are compared
    on the same images, which have the same path and, where the tables say it, the same content. The
    images are the test images where every run has some, else val.

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
    found, split = read_finished([expanded(folder) for folder in folders], evaluation)
    models = models_of(found, pooled=not evaluation)
    first = models[0].stored[0]
    patients, outputs = first.facts.get("patient"), first.outputs
    bootstrap = Bootstrap.over(patients, first.facts.get("file"), settings or ResultsConfig())
    several = sum(len(model.stored) for model in models) > 1
    known = all("content" in run.stored.facts for run in found)
    summary: dict[str, Any] = {
        "images": evaluation or split,
        "elsewhere": bool(evaluation),
        "task": outputs.task,
        "class_names": list(outputs.class_names),
        "num_examples": len(first.names),
        "num_patients": None if patients is None else len(np.unique(patients)),
        "matched_by": ("path and content" if known else "path") if several else None,
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


def _summary_of(model: Model, bootstrap: Bootstrap) -> dict[str, Any]:
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


def _comparison(one: Model, other: Model, bootstrap: Bootstrap) -> dict[str, Any]:
    """Returns the entry of two models in `summary.json`."""
    settings = [model.results[0].settings for model in (one, other)]
    others = {
        "training images": [model.training_images for model in (one, other)],
        "augmented on": [model.augmented_on for model in (one, other)],
    }
    folds = any(model.results[0].fold and not model.pooled for model in (one, other))
    differing = {
        key: [values.get(key) for values in settings]
        for key in dict.fromkeys([*settings[0], *settings[1]])
        if key not in NOT_OF_MODEL and settings[0].get(key) != settings[1].get(key)
    }
    return {
        "first": one.name,
        "second": other.name,
        "settings": differing
        | {k: values for k, values in others.items() if values[0] != values[1]},
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
        unit = summary["bootstrap"]["resampled"].removesuffix("s")
        notes.append(
            f"Patients are not known, so that every {unit} counts as another patient. If a patient"
            f" has several {unit}s, intervals are too narrow and p-values too small."
        )
    if summary["matched_by"] == "path":
        notes.append(
            "Images are matched by path only, because an earlier version wrote some of the tables"
            " of predictions, without a hash of each image's content. Evaluate these runs again"
            " with medmamba evaluate to write it."
        )
    if kinds & {"seeds", "folds of several seeds"}:
        notes.append(
            "The s.d. says how far training with another seed changes a value. The interval says"
            " how far other patients change the mean of these seeds."
        )
    if kinds & {"folds", "folds of several seeds"}:
        of = "the metric over the test images of all folds together"
        if summary["elsewhere"]:
            of = "the mean over the models of the folds"
        notes.append(
            f"Where folds have a value with an interval, it is {of}. The models of the folds"
            " share training images, so that their s.d. is no standard error."
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
