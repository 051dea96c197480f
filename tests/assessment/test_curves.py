"""The points of the curves against areas of scikit-learn and counts by hand."""

import numpy as np
import pytest
from sklearn import metrics

from medmamba_jax.assessment.curves import CURVES
from medmamba_jax.metrics import Outputs


def outputs(task="multiclass", classes=2):
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((90, classes))
    names = tuple("abc"[:classes])
    if task == "multiclass":
        labels = np.where(rng.random(90) < 0.6, logits.argmax(1), rng.integers(0, classes, 90))
        return Outputs(task, names, labels, logits)
    labels = (logits + rng.standard_normal(logits.shape) > 0).astype(np.float32)
    labels[::7] = np.nan
    return Outputs(task, names, labels, logits)


def columns(name, values, class_name):
    header, rows = CURVES[name](values)
    table = {column: [row[i] for row in rows] for i, column in enumerate(header)}
    chosen = np.array(table.pop("class")) == class_name
    return {column: np.array(cells)[chosen] for column, cells in table.items()}


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_area_under_the_points_is_the_auc(task):
    found = outputs(task, 3)
    for k, name in enumerate(found.class_names):
        known = found.known(name)
        labels = found.labels if task == "multiclass" else found.labels[known, k]
        actual, p = labels == (k if task == "multiclass" else 1), found.probabilities[known, k]
        roc = columns("roc", found, name)
        area = np.trapezoid(roc["sensitivity"], roc["false_positive_rate"])
        assert area == pytest.approx(metrics.roc_auc_score(actual, p))
        curve = columns("precision_recall", found, name)
        steps = -np.diff(curve["recall"]) * curve["precision"][:-1]
        assert steps.sum() == pytest.approx(metrics.average_precision_score(actual, p))
        at = len(curve["threshold"]) // 2
        shown = p >= curve["threshold"][at]
        assert curve["recall"][at] == pytest.approx(shown[actual].mean())


def test_reliability_counts_the_images_of_each_bin():
    found = outputs()
    table = columns("reliability", found, "b")
    assert table["images"].tolist() == [6] * 15
    order = np.argsort(found.probabilities[:, 1])
    np.testing.assert_allclose(
        table["mean_probability"], found.probabilities[order, 1].reshape(15, 6).mean(1)
    )
    np.testing.assert_allclose(table["share"], (found.labels[order] == 1).reshape(15, 6).mean(1))
    many = columns("reliability", outputs(classes=3), "predicted class")
    assert many["images"].sum() == 90 and many["mean_probability"].min() > 1 / 3
    several = outputs("multilabel", 2)
    assert columns("reliability", several, "a")["images"].sum() == several.known("a").sum()


def test_the_net_benefit_weighs_false_alarms_by_the_odds():
    found = outputs()
    table = columns("decision_curve", found, "b")
    assert len(table["threshold"]) == 99
    at = np.flatnonzero(np.isclose(table["threshold"], 0.2))[0]
    treated = found.probabilities[:, 1] >= 0.2
    right = (treated & (found.labels == 1)).sum()
    wrong = (treated & (found.labels == 0)).sum()
    assert table["net_benefit"][at] == pytest.approx((right - wrong / 4) / 90)
    share = (found.labels == 1).mean()
    assert table["net_benefit_of_treating_all"][at] == pytest.approx(share - (1 - share) / 4)
    assert CURVES["decision_curve"](outputs(classes=3))[1] == []


def test_a_class_that_no_image_shows_has_no_curve():
    found = Outputs("multiclass", ("a", "b"), np.zeros(9, int), np.zeros((9, 2)))
    assert CURVES["roc"](found)[1] == CURVES["precision_recall"](found)[1] == []
    assert len(CURVES["reliability"](found)[1]) == 9
