"""What is reported of a classifier; scikit-learn does the arithmetic."""

from collections.abc import Sequence
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
        ROC AUC; a class that all or none of the images belong to has none, and is left out of the
        mean (`auc` is None if every class is). `confusion_matrix[i][j]` counts images of class i
        taken for class j. A per-class ratio with nothing to divide by is None.
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
        "auc": _mean(row["auc"] for row in per_class.values()),
        "f1": _mean(row["f1"] for row in per_class.values()),
        "loss": float(-log_p[np.arange(len(labels)), labels].mean()),
        "per_class": per_class,
        "confusion_matrix": confusion.tolist(),
        "num_examples": len(labels),
        "class_names": list(class_names),
    }


def _one_against_rest(is_class, is_predicted, score):
    positives, negatives = int(is_class.sum()), int((~is_class).sum())
    recall = metrics.recall_score
    return {
        "num_examples": positives,
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
        "auc": (float(metrics.roc_auc_score(is_class, score)) if positives and negatives else None),
    }


def _mean(values):
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
