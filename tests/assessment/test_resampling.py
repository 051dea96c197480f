"""Every metric of many resamples against the table of metrics, one resample after the other."""

import dataclasses

import numpy as np
import pytest

from medmamba_jax.assessment import resampling
from medmamba_jax.assessment.resampling import keys, resampled
from medmamba_jax.metrics import METRICS, Metric, Outputs, measure


def outputs(task, classes, images=60, ties=False):
    rng = np.random.default_rng(classes)
    logits = 2 * rng.standard_normal((images, classes))
    if ties:
        logits = np.round(logits)
    names = tuple(f"class {k}" for k in range(classes))
    if task == "multiclass":
        guess = logits.argmax(1)
        labels = np.where(rng.random(images) < 0.6, guess, rng.integers(0, classes, images))
    else:
        labels = (logits + rng.standard_normal(logits.shape) > 0).astype(np.float32)
        labels[rng.random(labels.shape) < 0.2] = np.nan
    return Outputs(task, names, labels, logits)


def draws(images, count=4):
    rng = np.random.default_rng(7)
    weights = rng.multinomial(images, np.full(images, 1 / images), count)
    weights[0] = 1  # the sample itself
    few = np.zeros(images, int)
    few[:5] = 2, 0, 1, 3, 1  # most classes are missing
    return np.concatenate([weights, few[None]])


MACRO = {name for name, metric in METRICS.items() if metric.of_class} | {"balanced_accuracy"}


def classes_of(results, name):
    """The classes for which a metric is defined, or for balanced accuracy its term."""
    rows = results["per_class"].items()
    names = (name,)
    if name == "balanced_accuracy":
        names = ("sensitivity", "specificity")[: 2 if results["task"] == "multilabel" else 1]
    return {key for key, row in rows if all(row[name] is not None for name in names)}


@pytest.mark.parametrize(
    ("task", "classes", "ties"),
    [
        *(("multiclass", k, False) for k in (2, 3, 5)),
        *(("multilabel", k, ties) for k in (1, 3) for ties in (False, True)),
    ],
)
def test_each_metric_of_each_resample_equals_that_of_the_table(task, classes, ties):
    whole = outputs(task, classes, ties=ties)
    weights = draws(len(whole.labels))
    if task == "multiclass":
        weights[-2] = whole.labels == 0  # all show one class
    found = resampled(whole, weights)
    sample = measure(whole)
    assert found.shape == (len(keys(whole)), len(weights))
    for b, row in enumerate(weights):
        expected = measure(whole.take(np.repeat(np.arange(len(row)), row)))
        for key, value in zip(keys(whole), found[:, b], strict=True):
            class_name, name = key
            place = expected if class_name is None else expected["per_class"][class_name]
            wanted = np.nan if place[name] is None else place[name]
            if (
                class_name is None
                and name in MACRO
                and classes_of(expected, name) != (classes_of(sample, name))
            ):
                wanted = np.nan  # the mean would be over other classes
            np.testing.assert_allclose(value, wanted, atol=1e-12, err_msg=f"{key} of resample {b}")


def test_ties_of_several_classes_count_a_half():
    whole = outputs("multiclass", 3, ties=True)
    weights = draws(len(whole.labels))
    found = dict(zip(keys(whole), resampled(whole, weights), strict=True))
    for b, row in enumerate(weights):
        part = whole.take(np.repeat(np.arange(len(row)), row))
        if len(set(part.labels.tolist())) < 3:
            continue
        for name in ("auc", "average_precision", "sensitivity_at_specificity_90"):
            wanted = METRICS[name].value(part)
            np.testing.assert_allclose(found[None, name][b], wanted, atol=1e-12)


def test_a_metric_of_a_script_has_values_too(monkeypatch):
    errors = Metric("errors", compute=lambda o: float((o.labels != o.predicted).sum()))
    of_class = Metric("hits", of_class=lambda row: float((row.actual & row.predicted).sum()))
    monkeypatch.setitem(METRICS, "errors", dataclasses.replace(errors, tasks=("multiclass",)))
    monkeypatch.setitem(METRICS, "hits", of_class)
    whole = outputs("multiclass", 3)
    weights = draws(60)
    found = dict(zip(keys(whole), resampled(whole, weights), strict=True))
    wrong = whole.labels != whole.predicted
    np.testing.assert_array_equal(found[None, "errors"], weights @ wrong)
    hits = np.stack([found[name, "hits"] for name in whole.class_names])
    np.testing.assert_array_equal(hits.sum(0), weights @ ~wrong)
    np.testing.assert_allclose(found[None, "hits"], hits.mean(0))


def test_every_metric_of_the_table_has_a_fast_form():
    assert set(METRICS) == (
        set(resampling._OF_ALL) | set(resampling._OF_CLASSES) | set(resampling._OF_CLASS)
    )
