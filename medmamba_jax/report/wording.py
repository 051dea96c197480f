"""Results in words that a reader without statistics understands."""

from collections.abc import Mapping, Sequence
from typing import Any

from medmamba_jax.evaluation import of_missing_classes
from medmamba_jax.metrics import METRICS, range_text, value_text
from medmamba_jax.report.facts import Evaluation, RunFacts

_HEADINGS = {"precision": "PPV (precision)", "sensitivity": "sensitivity (recall)"}
_MOST_CLASSES = 6  # of a multi-label set that the headline names


def headline(evaluation: Evaluation) -> list[str]:
    """Returns the sentences that the report begins with."""
    results = evaluation.results
    if results["task"] == "multilabel":
        return _of_labels(evaluation)
    names = results["class_names"]
    if len(names) == 2:
        return _of_two(evaluation, *names)
    return _of_several(evaluation)


def where_from(evaluation: Evaluation) -> str:
    """Says which images the numbers are of, such as "100 test images of 60 patients"."""
    synthetic = "synthetic " if evaluation.results.get("synthetic") else ""
    split = "" if evaluation.elsewhere else f"{evaluation.name} "
    patients = "" if evaluation.patients is None else f" of {evaluation.patients} patients"
    of = f" of the set \u201c{evaluation.name}\u201d" if evaluation.elsewhere else ""
    trained = evaluation.results.get("training_images")
    known = f" ({trained} of them are training images of the run)" if trained else ""
    return f"{evaluation.images} {synthetic}{split}images{patients}{of}{known}"


def notes(run: RunFacts, evaluation: Evaluation) -> list[str]:
    """Returns what a reader must know before the numbers, one sentence or two each."""
    results, found = evaluation.results, []
    if results.get("synthetic"):
        found.append(
            "The images are SYNTHETIC: a program drew them. The numbers say nothing about patients."
        )
    elif run.description.synthetic:
        found.append("The model was trained on SYNTHETIC images, which a program drew.")
    if text := of_missing_classes(results):
        found.append(text)
    if evaluation.few:
        found.append(
            f"Few images: {', '.join(evaluation.few)}. A single image moves these numbers."
        )
    if evaluation.epoch != run.best_epoch:
        found.append(
            f"These results were made with the checkpoint of epoch {evaluation.epoch}; the best one"
            f" is of epoch {run.best_epoch} now: evaluate again."
        )
    if not evaluation.elsewhere and (shared := shared_text(run)):
        found.append(f"{shared} The numbers can be too good.")
    if evaluation.chose_checkpoint:
        found.append(
            "These are val images, and they chose the checkpoint. On new images the model is most"
            " likely worse. Evaluate it on a test split."
        )
    if count := results.get("training_images"):
        found.append(
            f"{count} of these images are training images of the run, so that the numbers say"
            " little about new images."
        )
    if evaluation.patients is None and not results.get("synthetic"):
        found.append(
            "Patients are not known, so that every image counts as another patient. If a patient"
            " has several images, the intervals are too narrow; and if such images are in two"
            " splits, the numbers are too good."
        )
    if "intervals" not in results:
        found.append(
            "An earlier version wrote these results, without intervals: evaluate the run again."
        )
    return found


def shared_text(run: RunFacts) -> str:
    """Says how many patients are in two splits; "" if none is known to be."""
    if not run.shared_patients:
        return ""
    one = run.shared_patients == 1
    subject = "1 patient has" if one else f"{run.shared_patients} patients have"
    return f"{subject} images in two or more splits."


def hundred(share: float) -> str:
    """Returns a share as a number out of 100; a number that only rounds to 0 or 100 says so."""
    whole = round(100 * share)
    if whole == 100 and share < 1:
        return "more than 99"
    if whole == 0 and share > 0:
        return "fewer than 1"
    return str(whole)


def heading(metric: str) -> str:
    """Returns the heading of a metric, in the words of a clinician."""
    return _HEADINGS.get(metric, METRICS[metric].heading)


def number(value: float | None, metric: str = "") -> str:
    """Returns a value with three decimals, or in percent where the metric is one."""
    return value_text(value, **_style(metric)).replace("%", " %")


def interval(ends: Sequence[float | None] | None, metric: str = "") -> str:
    """Returns both ends of an interval as text, or a dash if there is no interval."""
    text = range_text(ends, **_style(metric)).replace("%", " %")
    return "\u2013" if text == "-" else text


def _style(metric: str) -> dict[str, Any]:
    return {"percent": metric in METRICS and METRICS[metric].percent, "digits": 3}


def _of_two(evaluation: Evaluation, negative: str, positive: str) -> list[str]:
    found = [
        _recognised(evaluation, positive, "recognises"),
        _recognised(evaluation, negative, "recognises"),
    ]
    row = evaluation.results["per_class"][positive]
    shown_by_some = 0 < row["num_examples"] < evaluation.images
    if shown_by_some and row["precision"] is not None and row["npv"] is not None:
        found.append(
            f"Of 100 images that it calls {positive}, {hundred(row['precision'])} are {positive};"
            f" of 100 that it calls {negative}, {hundred(row['npv'])} are {negative}. This holds"
            f" where {positive} is as common as in these images"
            f" ({hundred(row['num_examples'] / evaluation.images)} of 100)."
        )
    return found


def _of_several(evaluation: Evaluation) -> list[str]:
    results = evaluation.results
    accuracy = _interval(results, "accuracy", _counted(results["accuracy"], evaluation.images))
    found = [
        f"Of 100 images the model gives {hundred(results['accuracy'])} the right class{accuracy}."
    ]
    if (balanced := results["balanced_accuracy"]) is not None:
        of = _interval(results, "balanced_accuracy", "")
        found.append(
            f"Of 100 images of a class it recognises {hundred(balanced)} on average over the"
            f" classes{of}."
        )
    known = {
        name: row["sensitivity"]
        for name, row in results["per_class"].items()
        if row["sensitivity"] is not None
    }
    if len(known) > 1:
        best, worst = max(known, key=lambda k: known[k]), min(known, key=lambda k: known[k])
        found += [
            f"Best: {_lower(_recognised(evaluation, best, 'recognises'))}",
            f"Worst: {_lower(_recognised(evaluation, worst, 'recognises'))}",
        ]
    return found


def _of_labels(evaluation: Evaluation) -> list[str]:
    per_class, found = evaluation.results["per_class"], []
    for name in list(per_class)[:_MOST_CLASSES]:
        sentence = _recognised(evaluation, name, "recognises")
        specificity = per_class[name]["specificity"]
        if specificity is not None:
            without = per_class[name].get("num_known", evaluation.images)
            without -= per_class[name]["num_examples"]
            false = 1 - specificity
            ends = _class_interval(evaluation, name, "specificity")
            interval = _words([1 - ends[1], 1 - ends[0]]) if ends else _counted(false, without)
            found.append(
                f"{sentence} Of 100 without it, it wrongly marks {hundred(false)}{interval}."
            )
        else:
            found.append(sentence)
    if len(per_class) > _MOST_CLASSES:
        found.append(f"The table below has all {len(per_class)} classes.")
    return found


def _recognised(evaluation: Evaluation, name: str, verb: str) -> str:
    row = evaluation.results["per_class"][name]
    if row["sensitivity"] is None:
        return f"No image here shows {name}."
    ends = _class_interval(evaluation, name, "sensitivity")
    interval = _words(ends) if ends else _counted(row["sensitivity"], row["num_examples"])
    return f"Of 100 images with {name} the model {verb} {hundred(row['sensitivity'])}{interval}."


def _class_interval(evaluation: Evaluation, name: str, metric: str) -> Sequence[float] | None:
    intervals: Mapping[str, Any] = evaluation.results.get("intervals", {})
    return intervals.get("per_class", {}).get(name, {}).get(metric)


def _interval(results: Mapping[str, Any], metric: str, otherwise: str) -> str:
    ends = results.get("intervals", {}).get("metrics", {}).get(metric)
    return _words(ends) if ends else otherwise


def _words(ends: Sequence[float]) -> str:
    return f" (95 % interval {hundred(ends[0])} to {hundred(ends[1])})"


def _counted(share: float, images: int) -> str:
    return f" ({round(share * images)} of {images} here; no interval)"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
