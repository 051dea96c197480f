"""The table of metrics against scikit-learn and confusion matrices counted by hand."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics

from medmamba_jax.metrics import METRICS, TASKS, Metric, Outputs, measure, metrics_of, values

RNG = np.random.default_rng(0)


def classification_metrics(labels, logits, names):
    return measure(Outputs("multiclass", names, labels, logits))


def multilabel_metrics(labels, logits, names):
    return measure(Outputs("multilabel", names, labels, logits))


def make(n, k):
    logits = RNG.standard_normal((n, k)).astype(np.float32)
    labels = np.where(RNG.random(n) < 0.5, logits.argmax(1), RNG.integers(0, k, n))
    return labels, logits


@pytest.mark.parametrize("k", [2, 3, 7])
def test_against_scikit_learn(k):
    labels, logits = make(200, k)
    names = [f"class {i}" for i in range(k)]
    got = classification_metrics(labels, logits, names)
    p = softmax(logits.astype(np.float64), axis=1)
    predicted = logits.argmax(1)
    assert got["accuracy"] == metrics.accuracy_score(labels, predicted)
    auc = (
        metrics.roc_auc_score(labels, p[:, 1])
        if k == 2
        else metrics.roc_auc_score(labels, p, multi_class="ovr", average="macro")
    )
    np.testing.assert_allclose(got["auc"], auc, rtol=1e-12)
    np.testing.assert_allclose(
        got["balanced_accuracy"], metrics.balanced_accuracy_score(labels, predicted)
    )
    np.testing.assert_allclose(got["f1"], metrics.f1_score(labels, predicted, average="macro"))
    np.testing.assert_allclose(got["loss"], metrics.log_loss(labels, p), rtol=1e-9)
    precision = metrics.average_precision_score(np.eye(k)[labels], p, average="macro")
    np.testing.assert_allclose(got["average_precision"], precision, rtol=1e-12)
    assert got["num_examples"] == 200 and got["class_names"] == names
    json.dumps(got)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_agreement_and_calibration_by_hand(k):
    labels, logits = make(200, k)
    got = classification_metrics(labels, logits, [f"class {i}" for i in range(k)])
    p = softmax(logits.astype(np.float64), axis=1)
    predicted = logits.argmax(1)
    counts = np.zeros((k, k))
    np.add.at(counts, (labels, predicted), 1)
    true, said, right = counts.sum(1), counts.sum(0), np.trace(counts)
    by_chance = true @ said / 200**2
    np.testing.assert_allclose(got["kappa"], (right / 200 - by_chance) / (1 - by_chance))
    # Gorodkin 2004, the correlation of k classes.
    product = (200**2 - said @ said) * (200**2 - true @ true)
    np.testing.assert_allclose(got["mcc"], (right * 200 - true @ said) / np.sqrt(product))
    np.testing.assert_allclose(got["brier"], ((p - np.eye(k)[labels]) ** 2).sum() / 200)
    expected = None if k == 2 else metrics.top_k_accuracy_score(labels, p, k=2)
    assert got["top_2_accuracy"] == expected

    order = np.argsort(p.max(1))
    edges = [sum(200 // 15 + (i < 200 % 15) for i in range(b)) for b in range(16)]
    error = 0.0
    for start, end in itertools.pairwise(edges):
        bin_ = order[start:end]
        confidence, accuracy = p.max(1)[bin_].mean(), (predicted == labels)[bin_].mean()
        error += (end - start) / 200 * abs(confidence - accuracy)
    np.testing.assert_allclose(got["ece"], error)


def test_a_perfect_model_and_one_that_knows_nothing():
    labels = np.arange(30) % 3
    perfect = classification_metrics(labels, 1e3 * np.eye(3)[labels], list("abc"))
    assert perfect["kappa"] == perfect["mcc"] == perfect["top_2_accuracy"] == 1
    assert perfect["ece"] == perfect["brier"] == 0
    nothing = classification_metrics(labels, np.zeros((30, 3)), list("abc"))
    assert nothing["kappa"] == 0 and nothing["mcc"] is None
    assert nothing["brier"] == pytest.approx(2 / 3)
    one = classification_metrics(np.zeros(5, int), np.tile([1.0, 0.0], (5, 1)), ["a", "b"])
    assert one["kappa"] is None and one["mcc"] is None


def test_brier_score_of_known_labels():
    labels = np.array([[1, 0], [np.nan, 1], [0, np.nan]])
    logits = np.array([[0.0, 2.0], [5.0, -1.0], [1.0, 3.0]])
    known = ~np.isnan(labels)
    expected = ((expit(logits) - np.nan_to_num(labels))[known] ** 2).mean()
    assert multilabel_metrics(labels, logits, ["a", "b"])["brier"] == pytest.approx(expected)


def test_per_class_from_the_confusion_matrix():
    labels, logits = make(150, 4)
    got = classification_metrics(labels, logits, list("abcd"))
    confusion = np.zeros((4, 4), int)
    for true, guess in zip(labels, logits.argmax(1), strict=True):
        confusion[true, guess] += 1
    assert got["confusion_matrix"] == confusion.tolist()
    for c, name in enumerate("abcd"):
        hits = confusion[c, c]
        missed, false = confusion[c].sum() - hits, confusion[:, c].sum() - hits
        row = got["per_class"][name]
        assert row["num_predicted"] == hits + false
        np.testing.assert_allclose(row["sensitivity"], hits / (hits + missed))
        np.testing.assert_allclose(row["specificity"], 1 - false / (150 - hits - missed))
        np.testing.assert_allclose(row["precision"], hits / (hits + false))
        np.testing.assert_allclose(row["f1"], 2 * hits / (2 * hits + missed + false))
        np.testing.assert_allclose(row["npv"], 1 - missed / (150 - hits - false))


def test_answers_with_an_absent_class_count_as_in_scikit_learn():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 2])
    got = classification_metrics(labels, np.eye(3)[predicted] * 3, ["a", "b", "c"])
    assert got["f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    precision = metrics.precision_score(labels, predicted, average="macro")
    assert got["precision"] == pytest.approx(precision)
    assert got["per_class"]["c"]["precision"] == got["per_class"]["c"]["f1"] == 0
    assert got["per_class"]["c"]["sensitivity"] is got["per_class"]["c"]["npv"] is None
    got = classification_metrics(np.zeros(4, int), np.eye(3)[predicted] * 3, ["a", "b", "c"])
    assert [row["precision"] for row in got["per_class"].values()] == [None] * 3  # all show a


def test_a_reason_says_what_the_images_and_the_model_did():
    labels = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    never = multilabel_metrics(labels, np.full((3, 2), -1.0), ["x", "y"])["undefined"]
    assert never["precision"].startswith("the model gives all images the same answer")
    always = multilabel_metrics(labels, np.full((3, 2), 1.0), ["x", "y"])["undefined"]
    assert set(always) == {"npv"}
    ones = multilabel_metrics(np.ones((3, 2), np.float32), np.ones((3, 2)), ["x", "y"])["undefined"]
    assert ones["precision"] == "every class is shown by all images or by none"


def test_absent_class_is_left_out_not_counted_as_zero():
    labels, logits = np.array([0, 0, 1, 1]), np.array([[2, 1, 0], [1, 2, 0], [0, 3, 1], [0, 1, 0]])
    got = classification_metrics(labels, logits, ["a", "b", "c"])
    assert got["per_class"]["c"]["auc"] is None
    assert got["per_class"]["c"]["sensitivity"] is None
    assert got["balanced_accuracy"] == 0.75
    pair = [got["per_class"][name]["auc"] for name in "ab"]
    assert got["auc"] == np.mean(pair)


def test_one_class_has_no_auc():
    got = classification_metrics(np.array([1, 1]), np.array([[0.0, 1.0], [1.0, 0.0]]), ["a", "b"])
    assert got["auc"] is None and got["accuracy"] == 0.5


def test_ties_count_half():
    got = classification_metrics(np.array([0, 1, 0, 1]), np.zeros((4, 2)), ["a", "b"])
    assert got["auc"] == 0.5


def test_every_row_of_the_table_is_reported_and_shown():
    outputs = {
        "multiclass": Outputs("multiclass", list("abc"), *make(20, 3)),
        "multilabel": Outputs("multilabel", list("abc"), *make_multilabel(20, 3)),
    }
    assert set(outputs) == set(TASKS)
    reported = set()
    for task, found in outputs.items():
        results = measure(found)
        for name, metric in metrics_of(task).items():
            assert isinstance(results[name], float) and results[name] == values(found)[name]
            assert (metric.of_class is None) == (name not in results["per_class"]["a"])
            reported.add(name)
    assert reported == set(METRICS)
    for metric in METRICS.values():
        assert metric.heading and metric.tasks and (metric.compute or metric.of_class)
        assert metric.text(None) == "undefined" and metric.text(0.25) in ("0.2500", "25.0%")


def test_a_metric_of_ones_own_is_one_row(monkeypatch):
    def youden(row):
        sensitivity = metrics.recall_score(row.actual, row.predicted)
        return sensitivity + metrics.recall_score(~row.actual, ~row.predicted) - 1

    monkeypatch.setitem(METRICS, "youden", Metric("Youden's J", of_class=youden))
    got = classification_metrics(*make(50, 3), list("abc"))
    rows = got["per_class"].values()
    expected = [row["sensitivity"] + row["specificity"] - 1 for row in rows]
    np.testing.assert_allclose([row["youden"] for row in rows], expected)
    np.testing.assert_allclose(got["youden"], np.mean(expected))


def make_multilabel(n, k):
    logits = 2 * RNG.standard_normal((n, k)).astype(np.float32)
    labels = RNG.random((n, k)) < expit(logits - 0.5)
    return labels.astype(np.float32), logits


class TestMultilabel:
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_against_scikit_learn(self, k):
        labels, logits = make_multilabel(200, k)
        names = [f"class {i}" for i in range(k)]
        got = multilabel_metrics(labels, logits, names)
        p = expit(logits.astype(np.float64))
        predicted = (p > 0.5).astype(int)
        expected = {
            "label_accuracy": 1 - metrics.hamming_loss(labels, predicted),
            "subset_accuracy": metrics.accuracy_score(labels, predicted),
            "balanced_accuracy": np.mean(
                [metrics.balanced_accuracy_score(labels[:, c], predicted[:, c]) for c in range(k)]
            ),
            "auc": metrics.roc_auc_score(labels, p, average="macro"),
            "average_precision": metrics.average_precision_score(labels, p, average="macro"),
            "f1": np.mean([metrics.f1_score(labels[:, c], predicted[:, c]) for c in range(k)]),
            "loss": np.mean([metrics.log_loss(labels[:, c], p[:, c]) for c in range(k)]),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-9, err_msg=name)
        for c, name in enumerate(names):
            (tn, fp), (fn, tp) = metrics.confusion_matrix(labels[:, c], predicted[:, c])
            row = got["per_class"][name]
            np.testing.assert_allclose(row["sensitivity"], tp / (tp + fn))
            np.testing.assert_allclose(row["specificity"], tn / (tn + fp))
            np.testing.assert_allclose(row["precision"], tp / (tp + fp))
            counts = row["num_examples"], row["num_known"], row["num_predicted"]
            assert counts == (tp + fn, 200, tp + fp)
        assert got["num_examples"] == 200 and got["class_names"] == names
        json.dumps(got, allow_nan=False)

    def test_unknown_labels_count_nowhere(self):
        labels, logits = make_multilabel(200, 3)
        known = RNG.random((200, 3)) < 0.7
        got = multilabel_metrics(np.where(known, labels, np.nan), logits, list("abc"))
        predicted = logits > 0
        for c, name in enumerate("abc"):
            rows = known[:, c]
            row, truth, guess = got["per_class"][name], labels[rows, c], predicted[rows, c]
            assert row["num_known"] == rows.sum() and row["num_examples"] == truth.sum()
            assert row["num_predicted"] == guess.sum()
            np.testing.assert_allclose(row["sensitivity"], metrics.recall_score(truth, guess))
            np.testing.assert_allclose(row["f1"], metrics.f1_score(truth, guess))
            np.testing.assert_allclose(row["auc"], metrics.roc_auc_score(truth, logits[rows, c]))
        right = (labels == 1) == predicted
        np.testing.assert_allclose(got["label_accuracy"], right[known].mean())
        images = [right[i][known[i]].all() for i in range(200) if known[i].any()]
        assert 0 < len(images) < 200
        np.testing.assert_allclose(got["subset_accuracy"], np.mean(images))
        loss = metrics.log_loss(labels[known], expit(logits[known].astype(np.float64)))
        np.testing.assert_allclose(got["loss"], loss, rtol=1e-9)

    def test_what_is_not_defined_is_none_and_left_out(self):
        labels = np.array([[1, 0, 1, np.nan], [0, 0, 1, np.nan]])
        logits = np.array([[1.0, -1, 1, 1], [-1.0, -1, -1, 1]])
        got = multilabel_metrics(labels, logits, list("abcd"))
        rows = got["per_class"]
        assert [rows[name]["auc"] for name in "abcd"] == [1.0, None, None, None]
        assert [rows[name]["sensitivity"] for name in "abcd"] == [1.0, None, 0.5, None]
        assert [rows[name]["specificity"] for name in "abcd"] == [1.0, 1.0, None, None]
        assert (got["auc"], got["balanced_accuracy"]) == (1.0, 1.0)
        assert got["subset_accuracy"] == 0.5 and got["label_accuracy"] == 5 / 6
        nothing = multilabel_metrics(np.full((2, 4), np.nan), logits, list("abcd"))
        assert all(nothing[name] is None for name in metrics_of("multilabel"))


@pytest.mark.slow
def test_a_program_that_measures_nothing_does_not_wait_for_scikit_learn():
    program = "import sys, medmamba_jax.cli.predict; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
