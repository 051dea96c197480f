"""Curves of a model's outputs, as tables: ROC, precision and recall, reliability, decisions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from medmamba_jax.metrics import BINS, Outputs

# Thresholds of the decision curve. A threshold is the probability from which on one would treat.
_THRESHOLDS = np.arange(1, 100) / 100

Table = tuple[list[str], list[list[Any]]]  # names of columns, and rows


def roc(outputs: Outputs) -> Table:
    """Returns the points of each class's ROC curve, from the highest threshold on."""
    from sklearn.metrics import roc_curve  # late, as in `metrics.py`

    rows = []
    for name, part in outputs.by_class.items():
        if part.has_both_sides:
            false_positive_rate, sensitivity, thresholds = roc_curve(part.actual, part.probability)
            points = zip(thresholds, false_positive_rate, sensitivity, strict=True)
            rows += [[name, *map(float, point)] for point in points]
    return ["class", "threshold", "false_positive_rate", "sensitivity"], rows


def precision_recall(outputs: Outputs) -> Table:
    """Returns the points of each class's curve, from the lowest threshold on."""
    from sklearn.metrics import precision_recall_curve  # late, as in `metrics.py`

    rows = []
    for name, part in outputs.by_class.items():
        if part.has_both_sides:
            precision, recall, thresholds = precision_recall_curve(part.actual, part.probability)
            points = zip(np.r_[thresholds, np.inf], recall, precision, strict=True)
            rows += [[name, *map(float, point)] for point in points]
    return ["class", "threshold", "recall", "precision"], rows


def reliability(outputs: Outputs) -> Table:
    """Returns, of bins of equally many images, the mean probability and the share of such images.

    Of two classes it is about the second one; of more, about the predicted class; of a multi-label
    set about each class.
    """
    if outputs.task == "multilabel":
        parts = {name: (row.probability, row.actual) for name, row in outputs.by_class.items()}
    elif len(outputs.class_names) == 2:
        name = outputs.class_names[1]
        parts = {name: (outputs.probabilities[:, 1], outputs.labels == 1)}
    else:
        right = outputs.predicted == outputs.labels
        parts = {"predicted class": (outputs.probabilities.max(1), right)}
    rows = []
    for name, (p, shown) in parts.items():
        order = np.argsort(p, kind="stable")
        # A class of a multi-label set may have no known label at all, and then has no bins.
        for part in np.array_split(order, min(BINS, len(order))) if len(order) else ():
            rows.append([name, len(part), float(p[part].mean()), float(shown[part].mean())])
    return ["class", "images", "mean_probability", "share"], rows


def decision_curve(outputs: Outputs) -> Table:
    """Returns the net benefit at each threshold (Vickers and Elkin 2006).

    It is about two classes, of which the second one would be treated, or about each class of a
    multi-label set. It has no rows for a set of more classes, and none for a class that all images
    or no images show.
    """
    names = list(outputs.class_names)
    if outputs.task == "multiclass":
        names = names[1:] if len(names) == 2 else []
    rows = []
    for name in names:
        part = outputs.by_class[name]
        count = len(part.actual)
        for threshold in _THRESHOLDS if part.has_both_sides else ():
            odds = threshold / (1 - threshold)
            treated = part.probability >= threshold
            right, wrong = (treated & part.actual).sum(), (treated & ~part.actual).sum()
            positive = part.actual.mean()
            rows.append(
                [
                    *(name, float(threshold), float((right - wrong * odds) / count)),
                    float(positive - (1 - positive) * odds),
                ]
            )
    return ["class", "threshold", "net_benefit", "net_benefit_of_treating_all"], rows


# The name of a curve's file -> its points.
CURVES: dict[str, Callable[[Outputs], Table]] = {
    "roc": roc,
    "precision_recall": precision_recall,
    "reliability": reliability,
    "decision_curve": decision_curve,
}
