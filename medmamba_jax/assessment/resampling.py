"""Every metric of many resamples at once, as the bootstrap needs it.

`metrics.METRICS` says what a metric is. This module computes the same numbers from weights, which
say how often a resample holds each image. It is some hundred times as fast. A metric without a row
here, such as one that a script adds to `METRICS`, is computed by its own function for each
resample.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from medmamba_jax.metrics import BINS, ClassOutputs, Outputs, metrics_of

# The name of a class, or None for all images; and the name of a metric.
Key = tuple[str | None, str]


def keys(outputs: Outputs) -> list[Key]:
    """Returns the metrics over all images, then those of each class."""
    rows = metrics_of(outputs.task)
    return [(None, name) for name in rows] + [
        (class_name, name)
        for class_name in outputs.class_names
        for name, metric in rows.items()
        if metric.of_class
    ]


def resampled(outputs: Outputs, weights: np.ndarray) -> np.ndarray:
    """Computes every metric of every resample.

    Args:
        outputs: labels and logits of n images.
        weights: how often a resample holds an image, integers (b, n).

    Returns:
        float64 (m, b), a row for each of `keys(outputs)`. NaN where a metric is not defined. A mean
        over classes is defined where all of the classes are that are defined for the sample, each
        image once; else it would be the mean of other classes than the sample's.
    """
    weights = np.asarray(weights, np.float64)
    whole = _Resamples(outputs, weights)
    sample = _Resamples(outputs, np.ones((1, len(outputs.labels))))
    found = []
    for class_name, name in keys(outputs):
        if class_name is None:
            metric = metrics_of(outputs.task)[name]
            if len(outputs.class_names) < metric.fewest_classes:
                found.append(np.full(len(weights), np.nan))
            elif name in _OF_ALL:
                found.append(_OF_ALL[name](whole))
            elif name in _OF_CLASSES:
                found.append(_mean(_OF_CLASSES[name](whole), _OF_CLASSES[name](sample)))
            elif name in _OF_CLASS:
                found.append(
                    _mean(*(_each_class(_OF_CLASS[name], parts) for parts in (whole, sample)))
                )
            else:
                found.append(_one_by_one(outputs, weights, name))
            if outputs.task == "multiclass" and metric.compares_classes:
                found[-1] = np.where(whole.one_class, np.nan, found[-1])
        elif name in _OF_CLASS:
            found.append(_OF_CLASS[name](whole.by_class[class_name]))
            if outputs.task == "multiclass" and name in ("precision", "f1"):
                found[-1] = np.where(whole.one_class, np.nan, found[-1])
        else:
            found.append(_one_by_one(outputs, weights, name, class_name))
    return np.stack(found)


def class_metrics(row: ClassOutputs, weights: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Computes metrics of one class against the rest, for every resample.

    Args:
        row: the class, over the images whose label is known (n).
        weights: how often a resample holds such an image, (b, n).
        names: metrics of `METRICS` that one class has.

    Returns:
        float64 (len(names), b); NaN where a metric is not defined.
    """
    part = _ClassResamples(row, np.asarray(weights, np.float64))
    return np.stack([_OF_CLASS[name](part) for name in names])


def _one_by_one(
    outputs: Outputs, weights: np.ndarray, name: str, class_name: str | None = None
) -> np.ndarray:
    metric, values = metrics_of(outputs.task)[name], []
    for row in weights.astype(int):
        part = outputs.take(np.repeat(np.arange(len(row)), row))
        if class_name is None:
            value = metric.value(part)
        else:
            assert metric.of_class is not None  # `keys` names only such metrics
            value = metric.of_class(part.by_class[class_name])
        values.append(np.nan if value is None else value)
    return np.array(values)


class _ClassResamples:
    """One class against the rest: sums over each resample, (b,)."""

    def __init__(self, row: ClassOutputs, weights: np.ndarray):
        self._row = row
        self._weights = weights
        self.true_positives = weights @ (row.actual & row.predicted)
        self.positives = weights @ row.actual
        self.negatives = weights @ ~row.actual
        self.predicted = weights @ row.predicted
        self.false_positives = self.predicted - self.true_positives
        self.true_negatives = self.negatives - self.false_positives
        self.all = self.positives + self.negatives

    @functools.cached_property
    def _steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Positive and negative weight of each distinct score, highest score first, (b, s)."""
        order = np.argsort(-self._row.score, kind="stable")
        score, actual = self._row.score[order], self._row.actual[order]
        starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]]) if len(score) else [0]
        weights = self._weights[:, order]
        if not len(score):
            return weights, weights
        return (
            np.add.reduceat(weights * actual, starts, axis=1),
            np.add.reduceat(weights * ~actual, starts, axis=1),
        )

    @functools.cached_property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Positives and negatives above each threshold, (b, s)."""
        positive, negative = self._steps
        return positive.cumsum(1), negative.cumsum(1)

    def auc(self) -> np.ndarray:
        """The probability that a positive image has the higher score; a tie counts a half."""
        positive, negative = self._steps
        below = self.negatives[:, None] - self.curve[1]
        won = (positive * (below + negative / 2)).sum(1)
        return _ratio(won, self.positives * self.negatives)

    def average_precision(self) -> np.ndarray:
        positive, (above, wrong) = self._steps[0], self.curve
        precision = np.nan_to_num(_ratio(above, above + wrong))
        defined = np.where(self.negatives > 0, self.positives, 0)
        return _ratio((positive * precision).sum(1), defined)

    def sensitivity_at(self, specificity: float) -> np.ndarray:
        """The largest sensitivity of a threshold with at least this specificity."""
        above, wrong = self.curve
        allowed = wrong <= _within(self.negatives * (1 - specificity))
        return _ratio(np.where(allowed, above, 0).max(1, initial=0), self.both(self.positives))

    def specificity_at(self, sensitivity: float) -> np.ndarray:
        """The largest specificity of a threshold with at least this sensitivity."""
        above, wrong = self.curve
        reached = above >= -_within(-self.positives * sensitivity)
        fewest = np.where(reached, wrong, np.inf).min(1, initial=np.inf)
        return _ratio(self.negatives - fewest, self.both(self.negatives))

    def both(self, denominator: np.ndarray) -> np.ndarray:
        """The denominator where a resample has images of both sides, else 0."""
        return np.where((self.positives > 0) & (self.negatives > 0), denominator, 0)

    def others(self, denominator: np.ndarray) -> np.ndarray:
        """The denominator where some image of a resample does not show the class, else 0."""
        return np.where(self.negatives > 0, denominator, 0)


def _within(limit: np.ndarray) -> np.ndarray:
    """Returns limits of counts as a column; a rounding error of the limit does no harm."""
    return (limit + 1e-9 * (1 + np.abs(limit)))[:, None]


@dataclasses.dataclass(frozen=True)
class _Resamples:
    """All classes: the outputs, and the weights of the images, (b, n)."""

    outputs: Outputs
    weights: np.ndarray

    @functools.cached_property
    def by_class(self) -> dict[str, _ClassResamples]:
        return {
            name: _ClassResamples(row, self.weights[:, self.outputs.known(name)])
            for name, row in self.outputs.by_class.items()
        }

    @functools.cached_property
    def one_class(self) -> np.ndarray:
        """Whether all images of a resample show the same class (multi-class), bool (b,)."""
        return sum(part.positives > 0 for part in self.by_class.values()) < 2

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """Weight of the images of class i for which the model predicts class j, (b, k, k)."""
        count = len(self.outputs.class_names)
        cell = self.outputs.labels * count + self.outputs.predicted
        flat = self.weights @ np.eye(count * count)[cell]
        return flat.reshape(-1, count, count)

    def average(self, values: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """The mean of a value of each image (n,), or of each known label (n, k)."""
        if where is None:
            return _ratio(self.weights @ values, self.weights.sum(1))
        total = self.weights @ np.where(where, values, 0).reshape(len(values), -1).sum(1)
        return _ratio(total, self.weights @ where.reshape(len(values), -1).sum(1))

    def accuracy(self) -> np.ndarray:
        return self.average((self.outputs.labels == self.outputs.predicted).astype(float))

    def label_accuracy(self) -> np.ndarray:
        labels = self.outputs.labels
        return self.average((labels == 1) == self.outputs.predicted, ~np.isnan(labels))

    def subset_accuracy(self) -> np.ndarray:
        known = ~np.isnan(self.outputs.labels)
        right = ((self.outputs.labels == 1) == self.outputs.predicted) | ~known
        return self.average(right.all(1), known.any(1))

    def balanced_accuracy(self) -> np.ndarray:
        """The term of each class, (k, b)."""
        if self.outputs.task == "multiclass":
            return _each_class(_sensitivity, self)
        return _each_class(lambda part: (_sensitivity(part) + _specificity(part)) / 2, self)

    def top_2_accuracy(self) -> np.ndarray:
        best = np.argsort(-self.outputs.scores, axis=1, kind="stable")[:, :2]
        return self.average((best == self.outputs.labels[:, None]).any(1).astype(float))

    def loss(self) -> np.ndarray:
        scores, labels = self.outputs.scores, self.outputs.labels
        if self.outputs.task == "multiclass":
            return self.average(-scores[np.arange(len(labels)), labels])
        return self.average(
            np.logaddexp(0, np.where(labels == 1, -scores, scores)), ~np.isnan(labels)
        )

    def brier(self) -> np.ndarray:
        p, labels = self.outputs.probabilities, self.outputs.labels
        if self.outputs.task == "multilabel":
            return self.average((p - labels) ** 2, ~np.isnan(labels))
        truth = np.eye(len(self.outputs.class_names))[labels]
        return self.average(((p - truth) ** 2).sum(1))

    def kappa(self, quadratic: bool = False) -> np.ndarray:
        """1 - observed / expected disagreement."""
        confusion, total = self.confusion, self.confusion.sum((1, 2))
        expected = confusion.sum(2)[:, :, None] * confusion.sum(1)[:, None, :]
        classes = np.arange(confusion.shape[1])
        distance = np.abs(classes[:, None] - classes)
        cost = distance**2 if quadratic else distance > 0
        observed = (confusion * cost).sum((1, 2)) * total
        return 1 - _ratio(observed, (expected * cost).sum((1, 2)))

    def weighted_kappa(self) -> np.ndarray:
        return self.kappa(quadratic=True)

    def mcc(self) -> np.ndarray:
        """The correlation of labels and predictions (Gorodkin 2004)."""
        confusion, total = self.confusion, self.confusion.sum((1, 2))
        actual, predicted = confusion.sum(2), confusion.sum(1)
        covariance = confusion.trace(axis1=1, axis2=2) * total - (actual * predicted).sum(1)
        variances = (total**2 - (actual**2).sum(1)) * (total**2 - (predicted**2).sum(1))
        return _ratio(covariance, np.sqrt(variances))

    def ece(self) -> np.ndarray:
        p = self.outputs.probabilities.max(1)
        right = self.outputs.predicted == self.outputs.labels
        order = np.argsort(p, kind="stable")
        excess = (p - right)[order]
        found = np.empty(len(self.weights))
        for b, weights in enumerate(self.weights[:, order]):
            # The sums of the excess before each end of a bin, on the images as often as they come.
            counts = np.r_[0, weights.cumsum()]
            sums = np.r_[0, (weights * excess).cumsum()]
            total = int(counts[-1])
            bins = min(BINS, total)
            sizes = np.full(bins, total // bins) + (np.arange(bins) < total % bins)
            ends = np.interp(np.r_[0, sizes.cumsum()], counts, sums)
            found[b] = np.abs(np.diff(ends)).sum() / total
        return found


def _sensitivity(part: _ClassResamples) -> np.ndarray:
    return _ratio(part.true_positives, part.positives)


def _specificity(part: _ClassResamples) -> np.ndarray:
    return _ratio(part.true_negatives, part.negatives)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides; NaN where the denominator is 0."""
    return np.divide(
        numerator,
        denominator,
        out=np.full(np.shape(numerator), np.nan),
        where=np.asarray(denominator) != 0,
    )


def _each_class(
    metric: Callable[[_ClassResamples], np.ndarray], resamples: _Resamples
) -> np.ndarray:
    """The metric of each class, (k, b)."""
    return np.stack([metric(part) for part in resamples.by_class.values()])


def _mean(values: np.ndarray, of_sample: np.ndarray) -> np.ndarray:
    """The mean over the classes that are defined for the sample; NaN without any.

    Args:
        values: (k, b).
        of_sample: the same of the sample, (k, 1).
    """
    defined = values[~np.isnan(of_sample[:, 0])]
    return defined.mean(0) if len(defined) else np.full(values.shape[1], np.nan)


_OF_ALL: dict[str, Callable[[_Resamples], np.ndarray]] = {
    name: getattr(_Resamples, name)
    for name in (
        *("loss", "accuracy", "label_accuracy", "subset_accuracy"),
        *("top_2_accuracy", "kappa", "weighted_kappa", "mcc", "brier", "ece"),
    )
}
# Means over classes of terms that are no metric of a class.
_OF_CLASSES: dict[str, Callable[[_Resamples], np.ndarray]] = {
    "balanced_accuracy": _Resamples.balanced_accuracy
}
_OF_CLASS: dict[str, Callable[[_ClassResamples], np.ndarray]] = {
    "sensitivity": _sensitivity,
    "specificity": _specificity,
    "precision": lambda part: _ratio(part.true_positives, part.others(part.predicted)),
    "npv": lambda part: _ratio(part.true_negatives, part.both(part.all - part.predicted)),
    "f1": lambda part: _ratio(
        2 * part.true_positives, part.others(part.positives + part.predicted)
    ),
    "auc": _ClassResamples.auc,
    "average_precision": _ClassResamples.average_precision,
    "sensitivity_at_specificity_90": lambda part: part.sensitivity_at(0.9),
    "sensitivity_at_specificity_95": lambda part: part.sensitivity_at(0.95),
    "specificity_at_sensitivity_90": lambda part: part.specificity_at(0.9),
    "specificity_at_sensitivity_95": lambda part: part.specificity_at(0.95),
}
