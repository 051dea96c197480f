"""Evaluates a predictor on labelled images by the table of metrics."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from medmamba_jax.data.csv_table import write_csv_table
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.labels import check_labels
from medmamba_jax.errors import NonFiniteLossError, UserError
from medmamba_jax.metrics import Metric, Outputs, measure, metrics_of
from medmamba_jax.predictor import Predictor


def evaluate(
    predictor: Predictor, images: LabelledImages, *, num_workers: int = 0
) -> dict[str, Any]:
    """Returns every metric of a predictor on labelled images, each of which counts once.

    Args:
        predictor: the trained model.
        images: a split of a data set. Its labels index `predictor.class_names`.
        num_workers: processes that read images; 0 reads in threads of this process.

    Returns:
        What `metrics.measure` returns.

    Raises:
        NonFiniteLossError: an output of the model is NaN or infinite.
        UserError: the labels are not those of the predictor's task, or there are no images.
    """
    return measure(labelled_outputs(predictor, images, num_workers=num_workers))


def labelled_outputs(
    predictor: Predictor, images: LabelledImages, *, num_workers: int = 0
) -> Outputs:
    """Returns labels and logits, as `evaluate` measures them; raises the same."""
    labels = images.labels
    if images.task != predictor.task:
        raise UserError(
            f"the model is for {predictor.task} labels, and the images have {images.task} ones"
        )
    check_labels(labels, len(predictor.class_names), "the labels to evaluate")
    if len(images.class_names) != len(predictor.class_names):
        raise UserError(
            f"the images have the classes {', '.join(images.class_names)}, but the model has"
            f" {', '.join(predictor.class_names)}, and each label is an index into these: give the"
            " images the class_names of the model"
        )
    outputs = predictor.outputs(images, num_workers=num_workers)
    finite = np.isfinite(outputs.logits).all(1)
    if not finite.all():
        first = images.describe(int(finite.argmin()))
        raise NonFiniteLossError(
            f"the model's outputs are not finite for {(~finite).sum()} of {len(finite)} images,"
            f" such as {first}"
        )
    return outputs


def table(results: Mapping[str, Any], title: str) -> str:
    """Returns results as text: the headline metrics, then a line for each class.

    Args:
        results: what `evaluate` returned. If it has `intervals`, those of the headline are shown.
        title: the name of the evaluated images.
    """
    task, rows = results["task"], metrics_of(results["task"])
    headline = ", ".join(
        f"{metric.heading} {metric.text(results[name])}{_interval(results, name, metric)}"
        for name, metric in rows.items()
        if metric.in_headline
    )
    columns = {name: metric for name, metric in rows.items() if metric.of_class and metric.in_table}
    counts = {"num_examples": "images"}
    if task == "multilabel":
        counts["num_known"] = "of known"
    width = max(5, *(len(name) for name in results["class_names"]))
    widths = {name: max(9, len(metric.heading)) + 2 for name, metric in columns.items()}
    lines = [
        f"{title}: {headline}",
        f"  {'class':<{width}}"
        + "".join(f"{name:>10}" for name in counts.values())
        + "".join(f"{metric.heading:>{widths[name]}}" for name, metric in columns.items()),
    ]
    for class_name, row in results["per_class"].items():
        cells = "".join(f"{row[key]:>10}" for key in counts)
        for name in columns:
            text = "undefined" if row[name] is None else f"{row[name]:.3f}"
            cells += f"{text:>{widths[name]}}"
        lines.append(f"  {class_name:<{width}}{cells}")
    if text := of_missing_classes(results):
        lines.append(f"  {text}")
    return "\n".join(lines)


def of_missing_classes(results: Mapping[str, Any]) -> str:
    """Says what is undefined because some class is shown by no image, or by all of them.

    Args:
        results: what `evaluate` returned.

    Returns:
        Sentences; "" if each class has images that show it and images that do not.
    """
    rows = results["per_class"]
    missing = [name for name, row in rows.items() if not row["num_examples"]]
    known = [name for name, row in rows.items() if row["num_examples"]]
    if results["task"] == "multiclass" and len(known) == 1 and missing:
        return (
            f"All images show {known[0]}. So metrics that compare classes, such as the AUC and PPV"
            " (precision), are undefined. The accuracy is the sensitivity of this class."
        )
    found = []
    if missing:
        found.append(
            f"No image shows {', '.join(missing)}. So sensitivity, NPV and AUC of {_these(missing)}"
            " are undefined, and means over classes leave them out. PPV (precision) and F1 are 0"
            f" where the model predicts {_these(missing)}, else undefined."
        )
    # Of a multi-class set, this was the case above.
    if everywhere := [
        name for name in known if rows[name].get("num_known") == rows[name]["num_examples"]
    ]:
        found.append(
            f"All images whose label is known show {', '.join(everywhere)}. So specificity, NPV and"
            f" AUC of {_these(everywhere)} are undefined, and means over classes leave them out."
        )
    return " ".join(found)


def _these(classes: list[str]) -> str:
    return "this class" if len(classes) == 1 else "these classes"


def _interval(results: Mapping[str, Any], name: str, metric: Metric) -> str:
    bounds = results.get("intervals", {}).get("metrics", {}).get(name)
    return "" if bounds is None else f" ({metric.range_text(bounds)})"


def write_predictions(path: pathlib.Path, images: LabelledImages, outputs: Outputs) -> None:
    """Writes a CSV file with a row for each image of a split, in its order.

    The columns are path (or another name of the image); patient, if the groups of the images are
    known; file, if a file holds several images; content (`LabelledImages.contents`), which shows
    whether two tables are of the same images; label and predicted, by name of the class; and the
    probability of each class, `p_<class>`, with nine digits. Of a multi-label set, where an image
    shows any number of classes, label and predicted are a column for each class: `label_<class>`,
    1, 0 or empty for not known, and `predicted_<class>`, 1 where the probability is above 0.5.

    Args:
        path: the file; its folder exists.
        images: the split.
        outputs: labels and logits of its images.
    """
    names = outputs.class_names
    if outputs.task == "multilabel":
        columns = [f"label_{name}" for name in names] + [f"predicted_{name}" for name in names]
        cells = [
            ["" if np.isnan(value) else int(value) for value in label] + [int(x) for x in predicted]
            for label, predicted in zip(outputs.labels, outputs.predicted, strict=True)
        ]
    else:
        columns = ["label", "predicted"]
        cells = [
            [names[label], names[predicted]]
            for label, predicted in zip(outputs.labels, outputs.predicted, strict=True)
        ]
    facts = {"patient": images.groups, "file": images.files, "content": images.contents}
    known = {column: values for column, values in facts.items() if values is not None}
    rows = [
        [name, *fact, *answer, *(f"{value:.9g}" for value in p)]
        for name, *fact, answer, p in zip(
            images.names, *known.values(), cells, outputs.probabilities, strict=True
        )
    ]
    write_csv_table(path, ["path", *known, *columns, *(f"p_{name}" for name in names)], rows)
