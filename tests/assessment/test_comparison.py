"""DeLong's and McNemar's tests against all pairs, all exchanges, SciPy and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from medmamba_jax.assessment.comparison import (
    auc_covariance,
    compare_answers,
    compare_aucs,
    compare_models,
)
from medmamba_jax.assessment.intervals import Bootstrap
from medmamba_jax.metrics import Outputs


def two_models(n=60, seed=0, decimals=1):
    """Correlated scores of two models, rounded so that many are equal."""
    rng = np.random.default_rng(seed)
    actual = rng.random(n) < 0.4
    shared = rng.normal(size=n)
    scores = [actual + shared + rng.normal(size=n), 0.5 * actual + shared + rng.normal(size=n)]
    return actual, np.round(scores, decimals)


def by_all_pairs(actual, scores):
    """DeLong 1988, equations 4 to 8, by the kernel of each pair of images."""
    x, y = scores[:, actual], scores[:, ~actual]
    kernel = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    of_shows, of_others = kernel.mean(2), kernel.mean(1)
    covariance = np.cov(of_shows) / x.shape[1] + np.cov(of_others) / y.shape[1]
    return kernel.mean((1, 2)), covariance


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_ranks_give_what_all_pairs_give(decimals):
    actual, scores = two_models(decimals=decimals)
    aucs, covariance = auc_covariance(actual, scores)
    expected = by_all_pairs(actual, scores)
    np.testing.assert_allclose(aucs, expected[0], rtol=1e-13)
    np.testing.assert_allclose(covariance, expected[1], rtol=1e-11)
    np.testing.assert_allclose(aucs, [roc_auc_score(actual, s) for s in scores], rtol=1e-13)


def test_the_interval_and_the_p_value_are_those_of_a_normal_difference():
    actual, scores = two_models()
    found = compare_aucs(actual, *scores)
    aucs, covariance = by_all_pairs(actual, scores)
    error = math.sqrt(np.array([1, -1]) @ covariance @ np.array([1, -1]))
    expected = norm(aucs[0] - aucs[1], error)
    assert (found.first, found.second) == pytest.approx(tuple(aucs))
    assert (found.low, found.high) == pytest.approx(expected.interval(0.95))
    assert found.p == pytest.approx(2 * min(expected.cdf(0), expected.sf(0)))
    back = compare_aucs(actual, *scores[::-1])
    assert (back.low, back.high, back.p) == pytest.approx((-found.high, -found.low, found.p))


def test_a_copy_of_every_image_tells_nothing_new_where_patients_are_known():
    actual, scores = two_models()
    once = auc_covariance(actual, scores)
    thrice, patients = (np.tile(actual, 3), np.tile(scores, 3)), np.tile(np.arange(60), 3)
    again = auc_covariance(*thrice, patients)
    np.testing.assert_allclose(again[0], once[0], rtol=1e-12)
    np.testing.assert_allclose(again[1], once[1], rtol=1e-10)
    assert auc_covariance(*thrice)[1][0, 0] < 0.4 * once[1][0, 0]


def test_the_variance_by_patient_is_that_of_many_drawn_sets():
    rng = np.random.default_rng(1)

    def draw():  # 40 patients with 4 images each, of both kinds, whose scores are correlated
        patients = np.repeat(np.arange(40), 4)
        actual = rng.random(160) < np.repeat(rng.random(40), 4)
        score = actual + np.repeat(rng.normal(size=40), 4) + 0.3 * rng.normal(size=160)
        return actual, score[None], patients

    found = [auc_covariance(*draw()) for _ in range(400)]
    drawn = np.var([aucs[0] for aucs, _ in found])
    assert np.mean([covariance[0, 0] for _, covariance in found]) == pytest.approx(drawn, rel=0.15)


def test_what_cannot_be_tested_is_not_tested():
    actual, scores = two_models()
    one = np.zeros(60, bool)
    one[0] = True
    assert compare_aucs(one, *scores) is None and compare_aucs(~one, *scores) is None
    assert compare_aucs(actual, *scores, patients=np.where(actual, 0, np.arange(60))) is None
    equal = compare_aucs(actual, scores[0], scores[0])
    assert (equal.difference, equal.low, equal.high, equal.p) == (0, None, None, None)
    opposite = compare_aucs(actual, actual, ~actual)
    assert opposite.difference == 1 and opposite.low is opposite.high is opposite.p is None


def test_two_perfect_models_have_no_interval():
    labels = np.repeat([0, 1], 10)
    perfect = Outputs("multiclass", ("no", "yes"), labels, 5.0 * np.eye(2)[labels])
    found = compare_models([perfect], [perfect], Bootstrap(None, 50))
    for key in ((None, "auc"), ("yes", "auc"), ("no", "auc")):
        entry = found[key]
        assert (entry["first"], entry["difference"]) == (1, 0), key
        assert entry["low"] is entry["high"] is entry["p"] is None, key
        assert entry["method"] == "no interval", key


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 9), (10, 10), (40, 70), (900, 1000)])
def test_mcnemar_is_the_binomial_test(b, c):
    first = np.repeat([True, False, True, False], [b, c, 5, 7])
    second = np.repeat([False, True, True, False], [b, c, 5, 7])
    found = compare_answers(first, second)
    assert (found.only_first, found.only_second) == (b, c)
    expected = binomtest(b, b + c).pvalue if b + c else 1
    assert found.p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_patient_counts_all_exchanges():
    rng = np.random.default_rng(2)
    patients = rng.integers(0, 12, 50)
    first, second = rng.random(50) < 0.8, rng.random(50) < 0.55
    found = compare_answers(first, second, patients)
    balance = [(first[patients == k].sum() - int(second[patients == k].sum())) for k in range(12)]
    sums = [
        abs(np.dot(signs, balance)) >= abs(sum(balance))
        for signs in itertools.product([1, -1], repeat=12)
    ]
    assert found.p == pytest.approx(np.mean(sums))


def test_copies_of_a_patients_images_tell_nothing_new():
    rng = np.random.default_rng(3)
    first, second = rng.random(30) < 0.9, rng.random(30) < 0.6
    patients = np.tile(np.arange(30), 4)
    found = compare_answers(np.tile(first, 4), np.tile(second, 4), patients)
    assert found.p == pytest.approx(compare_answers(first, second).p)
    assert compare_answers(np.tile(first, 4), np.tile(second, 4)).p < found.p / 10


def test_two_classes_have_one_auc_and_delongs_interval():
    actual, scores = two_models(decimals=8)
    models = [
        Outputs("multiclass", ("no", "yes"), actual.astype(int), np.stack([0 * s, s], axis=1))
        for s in scores
    ]
    found = compare_models(models[:1], models[1:], Bootstrap(None, 50))
    expected = compare_aucs(actual, *scores)
    for key in ((None, "auc"), ("yes", "auc"), ("no", "auc")):
        assert found[key]["p"] == pytest.approx(expected.p)
        assert found[key]["low"] == pytest.approx(expected.low)


def test_the_labels_of_an_image_are_exchanged_together():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, (30, 3)).astype(np.float32)
    labels[rng.random((30, 3)) < 0.2] = np.nan
    models = [
        Outputs("multilabel", ("a", "b", "c"), labels, rng.normal(size=(30, 3))) for _ in range(2)
    ]
    found = compare_models(models[:1], models[1:], Bootstrap(None, 50))[None, "label_accuracy"]
    known = ~np.isnan(labels)
    right = [((model.logits > 0) == (labels == 1)) & known for model in models]
    expected = compare_answers(
        right[0][known], right[1][known], np.repeat(np.arange(30), 3).reshape(30, 3)[known]
    )
    assert found["p"] == expected.p
    gain = (right[0].sum() - right[1].sum()) / known.sum()
    assert found["difference"] == pytest.approx(gain)
    assert found["low"] < gain < found["high"]
