import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from medmamba_jax.train.metrics import classification_metrics

RNG = np.random.default_rng(0)


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
    assert got["num_examples"] == 200 and got["class_names"] == names
    json.dumps(got)


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
        np.testing.assert_allclose(row["sensitivity"], hits / (hits + missed))
        np.testing.assert_allclose(row["specificity"], 1 - false / (150 - hits - missed))
        np.testing.assert_allclose(row["precision"], hits / (hits + false))
        np.testing.assert_allclose(row["f1"], 2 * hits / (2 * hits + missed + false))


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
