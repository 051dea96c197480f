"""The table of metrics. All code that reports, logs or compares a metric reads this table.

To add a metric, add a row to `METRICS`. Results, `metrics.jsonl`, TensorBoard, the printed table
and `train.best_metric` then have it, too. scikit-learn does the arithmetic.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, softmax

from medmamba_jax.data.labelled_images import TASKS

BINS = 15  # of the calibration error
_ROUNDING = 1e-9  # 1 - 0.9 is a little less than 0.1


@dataclasses.dataclass(frozen=True)
class ClassOutputs:
    """One class against the rest, over the images whose label for this class is known.

    Attributes:
        actual: whether an image shows the class, bool (n,).
        predicted: whether the model predicts the class, bool (n,).
        score: grows with the model's probability of the class, float64 (n,).
        probability: that probability, float64 (n,). It has ties where it rounds to 1.
        only_class: whether all images of a multi-class set show the same class, this or another.
    """

    actual: np.ndarray
    predicted: np.ndarray
    score: np.ndarray
    probability: np.ndarray
    only_class: bool = False

    @property
    def has_both_sides(self) -> bool:
        """Whether some images show the class and others do not."""
        return bool(self.actual.any() and not self.actual.all())


@dataclasses.dataclass(frozen=True)
class Outputs:
    """A model's outputs for labelled images.

    Attributes:
        task: "multiclass", where an image shows one class; or "multilabel", where it shows any
            number of them.
        class_names: K names.
        labels: of a multi-class set integers (n,); of a multi-label set (n, K) of 1, 0, and NaN
            where the label is not known.
        logits: (n, K).
    """

    task: str
    class_names: Sequence[str]
    labels: np.ndarray
    logits: np.ndarray

    def take(self, rows: np.ndarray) -> "Outputs":
        """Returns the outputs for the images of these rows, in this order."""
        return dataclasses.replace(self, labels=self.labels[rows], logits=self.logits[rows])

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """float64 (n, K): the softmax of the logits, or the sigmoid of each (multi-label)."""
        return probabilities(self.logits, self.task)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """The likeliest class, integers (n,); or which classes exceed 0.5, bool (n, K)."""
        return self.scores.argmax(1) if self.task == "multiclass" else self.scores > 0

    @functools.cached_property
    def only_class(self) -> str | None:
        """The class that all images of a multi-class set show; None if they show several."""
        if self.task != "multiclass" or len(shown := np.unique(self.labels)) != 1:
            return None
        return self.class_names[shown[0]]

    @functools.cached_property
    def by_class(self) -> dict[str, ClassOutputs]:
        """Class name -> the class against the rest."""
        found = {}
        for c, name in enumerate(self.class_names):
            rows = self.known(name)
            if self.task == "multiclass":
                actual, predicted = self.labels == c, self.predicted == c
            else:
                actual, predicted = self.labels[rows, c] == 1, self.predicted[rows, c]
            found[name] = ClassOutputs(
                actual,
                predicted,
                self.scores[rows, c],
                self.probabilities[rows, c],
                self.only_class is not None,
            )
        return found

    def known(self, class_name: str) -> np.ndarray:
        """Returns whether the label of an image for a class is known, bool (n,)."""
        if self.task == "multiclass":
            return np.full(len(self.labels), True)
        return ~np.isnan(self.labels[:, list(self.class_names).index(class_name)])

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """float64 (n, K): log-probabilities, or of a multi-label set logits.

        They order images as the probabilities do, but have no ties where these round to 1.
        """
        logits = np.asarray(self.logits, np.float64)
        return log_softmax(logits, axis=1) if self.task == "multiclass" else logits


def probabilities(logits: np.ndarray, task: str) -> np.ndarray:
    """Converts logits to probabilities, float64 (n, K)."""
    logits = np.asarray(logits, np.float64)
    return softmax(logits, axis=1) if task == "multiclass" else expit(logits)


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is computed and shown.

    Attributes:
        heading: the name of the metric in tables.
        compute: outputs -> value over all images, None where it is not defined. Without it, the
            value is the plain mean of `of_class` over the classes where that is defined.
        of_class: one class against the rest -> value, None where it is not defined. Without it,
            the metric has no value for a single class.
        tasks: the tasks it is for.
        higher_is_better: the direction.
        needs_both_sides: whether it needs a class that some images show and others do not.
        fewest_classes: it is undefined for a set with fewer classes.
        in_headline: whether the epoch's line and the table's title show it.
        in_table: whether the printed table has a column for it, if a class has it.
        percent: whether the epoch's line shows it in percent.
    """

    heading: str
    compute: Callable[[Outputs], float | None] | None = None
    of_class: Callable[[ClassOutputs], float | None] | None = None
    tasks: tuple[str, ...] = TASKS
    higher_is_better: bool = True
    needs_both_sides: bool = False
    fewest_classes: int = 1
    in_headline: bool = False
    in_table: bool = True
    percent: bool = False

    @property
    def compares_classes(self) -> bool:
        """Whether it is undefined for multi-class images that all show one class.

        Such metrics are means over the classes, or corrected for chance, as kappa and MCC are.
        """
        return self.needs_both_sides or self.of_class is not None

    def value(self, outputs: Outputs) -> float | None:
        """Returns the metric over all images; None where it is not defined."""
        if len(outputs.class_names) < self.fewest_classes:
            return None
        if self.compares_classes and outputs.only_class is not None:
            return None
        if self.compute is not None:
            return self.compute(outputs)
        assert self.of_class is not None  # a row has one or the other; a test checks it
        return _mean(self.of_class(row) for row in outputs.by_class.values())

    def text(self, value: float | None, **style: Any) -> str:
        """Returns a value for people; see `value_text`."""
        return value_text(value, percent=self.percent, **style)

    def range_text(self, ends: Sequence[float | None] | None, **style: Any) -> str:
        """Returns an interval, or another range of values, for people; see `range_text`."""
        return range_text(ends, percent=self.percent, **style)


def value_text(
    value: float | None, *, percent: bool = False, digits: int = 4, sign: bool = False
) -> str:
    """Returns a value for people, with `digits` decimals or in percent; `sign` adds a plus, too."""
    if value is None:
        return "undefined"
    return f"{value:{'+' if sign else ''}.{'1%' if percent else f'{digits}f'}}"


def range_text(ends: Sequence[float | None] | None, **style: Any) -> str:
    """Returns both ends as `value_text` does; "-" where there is no range."""
    if ends is None or None in ends:
        return "-"
    return " to ".join(value_text(end, **style) for end in ends)


def _sklearn() -> Any:
    """Returns `sklearn.metrics`. Its import takes a second, so only what measures imports it."""
    from sklearn import metrics

    return metrics


def _accuracy(outputs: Outputs) -> float:
    return float(_sklearn().accuracy_score(outputs.labels, outputs.predicted))


def _label_accuracy(outputs: Outputs) -> float | None:
    known = ~np.isnan(outputs.labels)
    return _mean(((outputs.labels == 1) == outputs.predicted)[known])


def _subset_accuracy(outputs: Outputs) -> float | None:
    known = ~np.isnan(outputs.labels)
    right = (outputs.labels == 1) == outputs.predicted
    return _mean((right | ~known).all(1)[known.any(1)])


def _balanced_accuracy(outputs: Outputs) -> float | None:
    rows = outputs.by_class.values()
    if outputs.task == "multiclass":
        return _mean(_sensitivity(row) for row in rows)
    return _mean(
        (_sensitivity(row) + _specificity(row)) / 2  # type: ignore[operator]
        for row in rows
        if row.has_both_sides
    )


def _loss(outputs: Outputs) -> float | None:
    """The plain cross-entropy, in nats; without class weights, smoothing and the like."""
    if outputs.task == "multiclass":
        log_p = outputs.scores
        return float(-log_p[np.arange(len(outputs.labels)), outputs.labels].mean())
    logits, labels = outputs.scores, outputs.labels
    return _mean(np.logaddexp(0, np.where(labels == 1, -logits, logits))[~np.isnan(labels)])


def _top_2_accuracy(outputs: Outputs) -> float:
    best = np.argsort(-outputs.scores, axis=1, kind="stable")[:, :2]
    return float((best == outputs.labels[:, None]).any(1).mean())


def _kappa(outputs: Outputs) -> float:
    return float(_sklearn().cohen_kappa_score(outputs.labels, outputs.predicted))


def _weighted_kappa(outputs: Outputs) -> float:
    """Cohen's kappa with quadratic weights, for classes whose order counts (Cohen 1968)."""
    classes = np.arange(len(outputs.class_names))
    return float(
        _sklearn().cohen_kappa_score(
            outputs.labels, outputs.predicted, labels=classes, weights="quadratic"
        )
    )


def _mcc(outputs: Outputs) -> float | None:
    if len(np.unique(outputs.predicted)) < 2:
        return None  # 0 / 0
    return float(_sklearn().matthews_corrcoef(outputs.labels, outputs.predicted))


def _brier(outputs: Outputs) -> float | None:
    """Brier's original score: the squared distance from the truth, summed over the classes (0..2).

    In a multi-label set it is the mean over the known labels (0..1).
    """
    if outputs.task == "multilabel":
        return _mean(((outputs.probabilities - outputs.labels) ** 2)[~np.isnan(outputs.labels)])
    truth = np.eye(len(outputs.class_names))[outputs.labels]
    return float(((outputs.probabilities - truth) ** 2).sum(1).mean())


def _ece(outputs: Outputs) -> float | None:
    """Expected calibration error of the predicted class, in 15 bins of equally many images.

    Nguyen and O'Connor 2015 use such bins. Those of Guo et al. 2017 have equal widths instead.
    """
    p = outputs.probabilities.max(1)
    right = outputs.predicted == outputs.labels
    parts = np.array_split(np.argsort(p, kind="stable"), min(BINS, len(p)))
    gaps = [len(part) * abs(p[part].mean() - right[part].mean()) for part in parts]
    return float(sum(gaps) / len(p))


def _sensitivity(row: ClassOutputs) -> float | None:
    return float(_sklearn().recall_score(row.actual, row.predicted)) if row.actual.any() else None


def _specificity(row: ClassOutputs) -> float | None:
    if row.actual.all():
        return None
    return float(_sklearn().recall_score(~row.actual, ~row.predicted))


# The next three would say nothing of a model where all images show the same class: PPV would be 1
# or 0 for any model. Of a class that is predicted, but that no image shows, PPV and F1 are 0, as in
# scikit-learn. So these mistakes count in the means over classes.


def _precision(row: ClassOutputs) -> float | None:
    if row.only_class or row.actual.all() or not row.predicted.any():
        return None
    return float(_sklearn().precision_score(row.actual, row.predicted))


def _negative_predictive_value(row: ClassOutputs) -> float | None:
    if row.predicted.all() or not row.has_both_sides:
        return None
    return float(_sklearn().precision_score(~row.actual, ~row.predicted))


def _f1(row: ClassOutputs) -> float | None:
    if row.only_class or row.actual.all() or not (row.actual.any() or row.predicted.any()):
        return None
    return float(_sklearn().f1_score(row.actual, row.predicted))


def _auc(row: ClassOutputs) -> float | None:
    return float(_sklearn().roc_auc_score(row.actual, row.score)) if row.has_both_sides else None


def _average_precision(row: ClassOutputs) -> float | None:
    if not row.has_both_sides:
        return None
    return float(_sklearn().average_precision_score(row.actual, row.score))


def _sensitivity_at(specificity: float, row: ClassOutputs) -> float | None:
    """The largest sensitivity that a threshold with at least this specificity has."""
    if not row.has_both_sides:
        return None
    false_positive_rate, sensitivity, _ = _sklearn().roc_curve(
        row.actual, row.score, drop_intermediate=False
    )
    return float(sensitivity[false_positive_rate <= 1 - specificity + _ROUNDING].max())


def _specificity_at(sensitivity: float, row: ClassOutputs) -> float | None:
    """The largest specificity that a threshold with at least this sensitivity has."""
    if not row.has_both_sides:
        return None
    false_positive_rate, reached, _ = _sklearn().roc_curve(
        row.actual, row.score, drop_intermediate=False
    )
    return float(1 - false_positive_rate[reached >= sensitivity - _ROUNDING].min())


# Name -> metric. `train.best_metric` takes any of these names.
METRICS: dict[str, Metric] = {
    "loss": Metric("loss", _loss, higher_is_better=False, in_headline=True),
    "accuracy": Metric(
        "accuracy", _accuracy, tasks=("multiclass",), in_headline=True, percent=True
    ),
    "label_accuracy": Metric(
        "label accuracy", _label_accuracy, tasks=("multilabel",), in_headline=True, percent=True
    ),
    "subset_accuracy": Metric("subset accuracy", _subset_accuracy, tasks=("multilabel",)),
    "balanced_accuracy": Metric(
        "balanced accuracy", _balanced_accuracy, needs_both_sides=True, in_headline=True
    ),
    "sensitivity": Metric("sensitivity", of_class=_sensitivity),
    "specificity": Metric("specificity", of_class=_specificity),
    "precision": Metric("precision", of_class=_precision, needs_both_sides=True),
    "npv": Metric("NPV", of_class=_negative_predictive_value, needs_both_sides=True),
    "f1": Metric("F1", of_class=_f1, needs_both_sides=True),
    "auc": Metric("AUC", of_class=_auc, needs_both_sides=True, in_headline=True),
    "average_precision": Metric(
        "average precision", of_class=_average_precision, needs_both_sides=True
    ),
    **{
        f"{reached}_at_{fixed}_{percent}": Metric(
            f"{reached} at {percent} % {fixed}",
            of_class=functools.partial(compute, percent / 100),
            needs_both_sides=True,
            in_table=False,
        )
        for reached, fixed, compute in (
            ("sensitivity", "specificity", _sensitivity_at),
            ("specificity", "sensitivity", _specificity_at),
        )
        for percent in (90, 95)
    },
    # With two classes, the top-2 accuracy is always 1, and the quadratic kappa is the plain one.
    "top_2_accuracy": Metric(
        "top-2 accuracy", _top_2_accuracy, tasks=("multiclass",), fewest_classes=3
    ),
    "kappa": Metric("Cohen's kappa", _kappa, tasks=("multiclass",), needs_both_sides=True),
    "mcc": Metric("MCC", _mcc, tasks=("multiclass",), needs_both_sides=True),
    "weighted_kappa": Metric(
        "quadratic kappa",
        _weighted_kappa,
        tasks=("multiclass",),
        needs_both_sides=True,
        fewest_classes=3,
    ),
    "brier": Metric("Brier score", _brier, higher_is_better=False),
    "ece": Metric("ECE (equal-mass)", _ece, tasks=("multiclass",), higher_is_better=False),
}


def metrics_of(task: str) -> dict[str, Metric]:
    """Returns the rows of `METRICS` for a task."""
    return {name: metric for name, metric in METRICS.items() if task in metric.tasks}


def values(outputs: Outputs) -> dict[str, float | None]:
    """Returns name -> value over all images of every metric for the task."""
    return {name: metric.value(outputs) for name, metric in metrics_of(outputs.task).items()}


def measure(outputs: Outputs) -> dict[str, Any]:
    """Returns every metric over all images and by class, as a dictionary that JSON can hold.

    Returns:
        The metrics by name. `per_class` has a row for each class: `num_examples`, the images that
        show it; `num_predicted`, the images for which the model predicts it; `num_known`
        (multi-label), the images for which the label is known; and the metrics that one class has.
        `confusion_matrix[i][j]` (multi-class) counts images of class i for which the model
        predicts class j. A metric that is not defined, such as the AUC of a class that every image
        shows, is None; means over classes leave it out. `undefined` says why, for metrics over all
        images.
    """
    rows = metrics_of(outputs.task)
    per_class: dict[str, dict[str, Any]] = {}
    for name, row in outputs.by_class.items():
        counts = {"num_examples": int(row.actual.sum()), "num_predicted": int(row.predicted.sum())}
        if outputs.task == "multilabel":
            counts["num_known"] = len(row.actual)
        per_class[name] = counts | {
            key: metric.of_class(row) for key, metric in rows.items() if metric.of_class
        }
    found: dict[str, Any] = {"task": outputs.task, **values(outputs), "per_class": per_class}
    found["undefined"] = {
        name: _why_undefined(metric, outputs)
        for name, metric in rows.items()
        if found[name] is None and len(outputs.class_names) >= metric.fewest_classes
    }
    if outputs.task == "multiclass":
        classes = np.arange(len(outputs.class_names))
        confusion = _sklearn().confusion_matrix(outputs.labels, outputs.predicted, labels=classes)
        found["confusion_matrix"] = confusion.tolist()
    return found | {
        "num_examples": len(outputs.labels),
        "class_names": list(outputs.class_names),
    }


def _why_undefined(metric: Metric, outputs: Outputs) -> str:
    """Returns the reason why a metric has no value over all images."""
    if outputs.only_class is not None and metric.compares_classes:
        return f"all images show {outputs.only_class}"
    if outputs.task == "multilabel":
        if np.isnan(outputs.labels).all():
            return "no label is known"
        if not any(row.has_both_sides for row in outputs.by_class.values()):
            return "every class is shown by all images or by none"
        return "the model gives all images the same answer for each class that only some show"
    return "the model predicts one class for all images"


def _mean(values: Any) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
