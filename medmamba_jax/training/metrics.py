"""What is reported of a classifier; scikit-learn does the arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn import metrics


def classification_metrics(
    labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns accuracy, AUC, per-class figures and the confusion matrix.

    Args:
        labels: integers (n,).
        logits: (n, K).
        class_names: K names.

    Returns:
        A dictionary that JSON can hold. `auc` is the mean over classes of the one-against-rest
        ROC AUC, `average_precision` that of the precision-recall curves; a class that all or none
        of the images belong to has neither, and is left out of the means (which are None if every
        class is). `confusion_matrix[i][j]` counts images of class i taken for class j. A per-class
        ratio with nothing to divide by is None.
    """
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    predicted = log_p.argmax(1)
    classes = np.arange(len(class_names))
    confusion = metrics.confusion_matrix(labels, predicted, labels=classes)
    per_class = {
        name: _one_against_rest(labels == c, predicted == c, log_p[:, c])
        for c, name in enumerate(class_names)
    }
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "balanced_accuracy": _mean(row["sensitivity"] for row in per_class.values()),
        **_macro(per_class),
        "loss": float(-log_p[np.arange(len(labels)), labels].mean()),
        "per_class": per_class,
        "confusion_matrix": confusion.tolist(),
        "num_examples": len(labels),
        "class_names": list(class_names),
    }


def multilabel_metrics(
    labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns the same of images that show any number of classes; unknown labels count nowhere.

    A class is predicted where its probability, the sigmoid of its logit, is above 0.5.

    Args:
        labels: (n, K) of 1, 0 and NaN, which is unknown.
        logits: (n, K).
        class_names: K names.

    Returns:
        As `classification_metrics`, but for what has no meaning here: in place of `accuracy` there
        are `label_accuracy`, the share of labels that are right, and `subset_accuracy`, the share
        of images all of whose labels are (of images with any). `balanced_accuracy` is the mean
        over classes of (sensitivity + specificity) / 2, and `loss` the mean binary cross-entropy.
        There is no confusion matrix; `per_class` counts the images that show a class
        (`num_examples`), those known to show it or not (`num_known`), and those taken to show it
        (`num_predicted`).
    """
    logits = np.asarray(logits, np.float64)
    known, actual, predicted = ~np.isnan(labels), labels == 1, logits > 0
    per_class = {}
    for c, name in enumerate(class_names):
        rows = known[:, c]
        row = _one_against_rest(actual[rows, c], predicted[rows, c], logits[rows, c])
        per_class[name] = row | {"num_known": int(rows.sum())}
    right = actual == predicted
    losses = np.logaddexp(0, np.where(actual, -logits, logits))
    return {
        "label_accuracy": _mean(right[known]),
        "subset_accuracy": _mean((right | ~known).all(1)[known.any(1)]),
        "balanced_accuracy": _mean(
            (row["sensitivity"] + row["specificity"]) / 2
            for row in per_class.values()
            if 0 < row["num_examples"] < row["num_known"]
        ),
        **_macro(per_class),
        "loss": _mean(losses[known]),
        "per_class": per_class,
        "num_examples": len(labels),
        "class_names": list(class_names),
    }


# Task of a data set -> function (labels, logits, class names) -> what is reported.
METRICS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "multiclass": classification_metrics,
    "multilabel": multilabel_metrics,
}

# What of it is logged every epoch, and may choose the best checkpoint.
_OF_BOTH = ("balanced_accuracy", "auc", "average_precision", "f1", "loss")
LOGGED: Mapping[str, tuple[str, ...]] = {
    "multiclass": ("accuracy", *_OF_BOTH),
    "multilabel": ("label_accuracy", "subset_accuracy", *_OF_BOTH),
}


def _one_against_rest(is_class, is_predicted, score):
    positives, negatives = int(is_class.sum()), int((~is_class).sum())
    recall, ranked = metrics.recall_score, bool(positives and negatives)
    return {
        "num_examples": positives,
        "num_predicted": int(is_predicted.sum()),
        "sensitivity": float(recall(is_class, is_predicted)) if positives else None,
        "specificity": float(recall(~is_class, ~is_predicted)) if negatives else None,
        "precision": (
            float(metrics.precision_score(is_class, is_predicted)) if is_predicted.any() else None
        ),
        "f1": (
            float(metrics.f1_score(is_class, is_predicted))
            if positives or is_predicted.any()
            else None
        ),
        "auc": float(metrics.roc_auc_score(is_class, score)) if ranked else None,
        "average_precision": (
            float(metrics.average_precision_score(is_class, score)) if ranked else None
        ),
    }


def _macro(per_class):
    names = ("auc", "average_precision", "f1")
    return {name: _mean(row[name] for row in per_class.values()) for name in names}


def _mean(values):
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
