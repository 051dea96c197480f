"""Thresholds of a class's probability, chosen on the validation split and applied to others."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from medmamba_jax.assessment.intervals import Bootstrap
from medmamba_jax.assessment.resampling import class_metrics
from medmamba_jax.metrics import ClassOutputs, Outputs, metrics_of

APPLIED = ("sensitivity", "specificity", "precision", "npv")  # what is reported at a threshold


def youden(row: ClassOutputs) -> float | None:
    """Returns the threshold with the largest sensitivity + specificity - 1 (Youden 1950)."""
    if not row.has_both_sides:
        return None
    false_positive_rate, sensitivity, thresholds = _curve(row)
    return float(thresholds[np.argmax(sensitivity - false_positive_rate)])


def with_sensitivity(least: float, row: ClassOutputs) -> float | None:
    """Returns the highest threshold with at least this sensitivity."""
    if not row.has_both_sides:
        return None
    _, sensitivity, thresholds = _curve(row)
    return float(thresholds[np.argmax(sensitivity >= least - 1e-9)])


def _curve(row: ClassOutputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ROC curve without its first point, whose threshold is infinite."""
    from sklearn.metrics import roc_curve  # late, as in `metrics.py`

    points = roc_curve(row.actual, row.probability, drop_intermediate=False)
    return tuple(values[1:] for values in points)


# Rule -> how it chooses a threshold: one class against the rest -> probability, or None where the
# images show one side only.
RULES: dict[str, Callable[[ClassOutputs], float | None]] = {
    "youden": youden,
    "sensitivity_90": functools.partial(with_sensitivity, 0.9),
    "sensitivity_95": functools.partial(with_sensitivity, 0.95),
}
RULES_IN_WORDS = {
    "youden": "largest sensitivity + specificity (Youden)",
    "sensitivity_90": "sensitivity of 90 % on val",
    "sensitivity_95": "sensitivity of 95 % on val",
}


def at_thresholds(
    outputs: Outputs, thresholds: Mapping[str, Mapping[str, float | None]], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """Applies thresholds to images on which they were not chosen.

    Args:
        outputs: labels and logits of these images.
        thresholds: class -> rule -> probability, as `Calibration.thresholds`.
        bootstrap: how intervals are made.

    Returns:
        Class -> rule -> `threshold`, and for each metric of `APPLIED` its value and, as
        `<metric>_interval`, its interval. A rule without a threshold is left out.
    """
    chosen = [
        (name, rule, value)
        for name, rules in thresholds.items()
        for rule, value in rules.items()
        if value is not None
    ]
    rows = {}
    for name, rule, value in chosen:
        row = outputs.by_class[name]
        rows[name, rule] = dataclasses.replace(row, predicted=row.probability >= value)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                class_metrics(row, weights[:, outputs.known(name)], APPLIED)
                for (name, _), row in rows.items()
            ]
        )

    metrics = metrics_of(outputs.task)
    found: dict[str, dict[str, Any]] = {name: {} for name in thresholds}
    if not chosen:
        return found
    intervals = iter(bootstrap.intervals(statistic, len(outputs.labels)))
    for name, rule, value in chosen:
        cells: dict[str, Any] = {"threshold": value}
        for metric in APPLIED:
            interval = next(intervals)
            of_class = metrics[metric].of_class
            assert of_class is not None  # `APPLIED` names metrics of a class
            cells[metric] = of_class(rows[name, rule])
            cells[f"{metric}_interval"] = None if interval is None else list(interval)
        found[name][rule] = cells
    return found
