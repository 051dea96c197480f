"""Intervals against SciPy's bootstrap of a plain mean, and against what intervals promise."""

import numpy as np
import pytest
from scipy import stats

from medmamba_jax.assessment import intervals
from medmamba_jax.assessment.intervals import Bootstrap, metric_intervals
from medmamba_jax.metrics import METRICS, Outputs


def binary(labels, right):
    """Outputs whose predictions are right where `right` says so."""
    predicted = np.where(right, labels, 1 - labels)
    logits = np.stack([np.zeros(len(labels)), 2.0 * predicted - 1], axis=1)
    return Outputs("multiclass", ("no", "yes"), labels, logits)


def sample(images=80, share=0.8):
    rng = np.random.default_rng(3)
    return rng.integers(0, 2, images), rng.random(images) < share


def test_the_interval_of_the_accuracy_is_scipys_interval_of_a_mean():
    labels, right = sample()
    found = metric_intervals(binary(labels, right), Bootstrap(None, 999, seed=5))
    wanted = stats.bootstrap(
        (right.astype(float),), np.mean, n_resamples=999, rng=np.random.default_rng(5)
    ).confidence_interval
    np.testing.assert_allclose(found["metrics"]["accuracy"], wanted)
    assert found["method"] == "BCa" and found["resampled"] == "images" and found["units"] == 80
    assert found["level"] == 0.95 and found["resamples"] == 999 and found["seed"] == 5


def test_patients_are_drawn_whole():
    labels, right = sample(40)
    copies = 4  # of each image, by the same patient: they add no information
    outputs = binary(np.repeat(labels, copies), np.repeat(right, copies))
    patients = np.repeat(np.arange(40), copies).astype(str)
    by_patient = metric_intervals(outputs, Bootstrap(patients, 500))
    one_each = metric_intervals(binary(labels, right), Bootstrap(None, 500))
    by_image = metric_intervals(outputs, Bootstrap(None, 500))
    assert by_patient["resampled"] == "patients" and by_patient["units"] == 40
    width = {
        name: float(np.diff(found["metrics"]["accuracy"])[0])
        for name, found in (("patient", by_patient), ("one", one_each), ("image", by_image))
    }
    assert width["image"] < 0.6 * width["patient"]
    assert width["patient"] == pytest.approx(width["one"], rel=0.25)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        labels = rng.integers(0, 2, 60)
        found = metric_intervals(binary(labels, rng.random(60) < 0.75), Bootstrap(None, 120, trial))
        low, high = found["metrics"]["accuracy"]
        covered += low <= 0.75 <= high
    assert 86 <= covered <= 99  # 95 expected; a standard deviation is 2.2


def test_what_resampling_cannot_say_is_none():
    labels, _ = sample()
    found = metric_intervals(binary(labels, np.full(80, True)), Bootstrap(None, 100))
    assert found["metrics"]["accuracy"] is None  # all are right in every resample
    one = binary(np.zeros(80, int), np.arange(80) > 9)
    found = metric_intervals(one, Bootstrap(None, 100))
    assert found["metrics"]["auc"] is None and found["per_class"]["yes"]["sensitivity"] is None
    assert found["metrics"]["accuracy"] is not None
    assert metric_intervals(one, Bootstrap(np.full(80, "a"), 100))["metrics"]["accuracy"] is None
    assert metric_intervals(one, Bootstrap(None, 0))["metrics"]["accuracy"] is None


def test_a_class_that_few_images_show_has_an_interval_of_percentiles():
    labels = np.r_[np.zeros(40, int), 1, 1]
    right = np.r_[np.full(30, True), np.full(10, False), True, False]
    found = metric_intervals(binary(labels, right), Bootstrap(None, 300))
    low, high = found["per_class"]["yes"]["sensitivity"]
    assert (low, high) == (0, 1)  # two images leave it open


def test_many_units_take_percentiles(monkeypatch):
    labels, right = sample()
    monkeypatch.setattr(intervals, "MOST_FOR_BCA", 79)
    found = metric_intervals(binary(labels, right), Bootstrap(None, 999, seed=5))
    wanted = stats.bootstrap(
        (right.astype(float),),
        np.mean,
        n_resamples=999,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    np.testing.assert_allclose(found["metrics"]["accuracy"], wanted)
    assert found["method"] == "percentile"


def test_a_mean_over_classes_has_an_interval_of_the_same_classes():
    """A resample without the rare class, which is never recognised, says nothing of the mean."""
    labels = np.repeat([0, 1, 2], [60, 60, 2])
    logits = np.eye(3)[np.where(labels == 2, 0, labels)] * 4.0
    logits[::7] = logits[::7, [1, 0, 2]]
    outputs = Outputs("multiclass", ("a", "b", "rare"), labels, logits)
    found = metric_intervals(outputs, Bootstrap(None, 300))
    low, high = found["metrics"]["balanced_accuracy"]
    assert high <= 2 / 3  # the rare class counts a third, and its sensitivity is 0
    assert low < 2 / 3 * 6 / 7 < high


def test_an_interval_holds_its_value():
    """The ECE of resamples is larger than that of the sample, because it is a mean of distances."""
    rng = np.random.default_rng(0)
    for trial in range(20):
        outputs = Outputs(
            "multiclass", ("a", "b"), rng.integers(0, 2, 36), rng.standard_normal((36, 2)) / 20
        )
        found = metric_intervals(outputs, Bootstrap(None, 200, trial))["metrics"]
        for name, interval in found.items():
            if interval is not None:
                value = METRICS[name].value(outputs)
                assert interval[0] - 1e-9 <= value <= interval[1] + 1e-9, name
        assert found["accuracy"] is not None
