"""Prediction sets by split conformal prediction (Vovk et al. 2005; Sadinle et al. 2019).

The score of an image is 1 minus the probability of its class. A set holds the classes whose score
is at most a quantile of the scores of the validation images. If the new images are like these
(exchangeable with them), the set holds the true class about as often as the level says: on average
over images, and with a quantile for each class within each class. The theory promises "at least as
often", but for a model that did not use the validation images in any way. Here they also chose the
checkpoint, so the share can be a little lower.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medmamba_jax.assessment.intervals import Bootstrap
from medmamba_jax.metrics import Outputs

LEVELS = (0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class SetThresholds:
    """The largest scores that a set of some level holds.

    Attributes:
        of_all: one for all classes. 1 if there are too few images for the level, so that every
            set holds every class.
        by_class: one for each class, likewise.
    """

    of_all: float
    by_class: Sequence[float]


def fit_sets(outputs: Outputs, level: float) -> SetThresholds:
    """Fits the thresholds on validation images of a multi-class set.

    Args:
        outputs: labels and logits of these images.
        level: the share of sets that shall hold the true class.
    """
    scores = _true_scores(outputs)
    by_class = [
        _quantile(scores[outputs.labels == k], level) for k in range(len(outputs.class_names))
    ]
    return SetThresholds(_quantile(scores, level), by_class)


def members(
    probabilities: np.ndarray, thresholds: SetThresholds, *, by_class: bool = False
) -> np.ndarray:
    """Returns which classes are in the prediction set of each image, bool (n, k).

    Args:
        probabilities: (n, k).
        thresholds: what `fit_sets` returned.
        by_class: whether each class has its own threshold.
    """
    limit = np.asarray(thresholds.by_class if by_class else thresholds.of_all)
    return 1 - np.asarray(probabilities) <= limit


def assess_sets(
    outputs: Outputs, thresholds: SetThresholds, bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """Returns how often the sets of other images hold the true class, and how large they are.

    Args:
        outputs: labels and logits of images on which the thresholds were not fitted.
        thresholds: what `fit_sets` returned.
        bootstrap: how intervals are made.

    Returns:
        "of_all" and "by_class", the two kinds of sets -> `coverage` and `mean_size` with their
        intervals, `empty` and `single`, the shares of sets of no and of one class, and
        `class_coverage`: class -> coverage of its images, None where no image shows it.
    """
    found = {}
    rows = np.arange(len(outputs.labels))
    for kind in ("of_all", "by_class"):
        inside = members(outputs.probabilities, thresholds, by_class=kind == "by_class")
        held, size = inside[rows, outputs.labels], inside.sum(1)
        table = np.stack([held, size]).astype(float)

        def means(weights: np.ndarray, table: np.ndarray = table) -> np.ndarray:
            return (table @ weights.T) / weights.sum(1)

        coverage, mean_size = bootstrap.intervals(means, len(rows))
        found[kind] = {
            "coverage": float(held.mean()),
            "coverage_interval": None if coverage is None else list(coverage),
            "mean_size": float(size.mean()),
            "mean_size_interval": None if mean_size is None else list(mean_size),
            "empty": float((size == 0).mean()),
            "single": float((size == 1).mean()),
            "class_coverage": {
                name: float(held[outputs.labels == k].mean())
                if (outputs.labels == k).any()
                else None
                for k, name in enumerate(outputs.class_names)
            },
        }
    return found


def _true_scores(outputs: Outputs) -> np.ndarray:
    return 1 - outputs.probabilities[np.arange(len(outputs.labels)), outputs.labels]


def _quantile(scores: np.ndarray, level: float) -> float:
    """Returns the ceil((n + 1) level)-th smallest score; 1 if there are fewer."""
    place = math.ceil((len(scores) + 1) * level - 1e-9)
    return 1.0 if place > len(scores) else float(np.sort(scores)[place - 1])
