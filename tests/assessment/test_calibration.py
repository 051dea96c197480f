"""Temperature, thresholds and prediction sets against searches by hand and against crepes."""

import json

import crepes
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

import medmamba_jax as mm
from medmamba_jax.assessment.calibration import (
    FILE,
    at_temperature,
    calibrate,
    doubt_about,
    fit_temperature,
    read_calibration,
    write_calibration,
)
from medmamba_jax.assessment.intervals import Bootstrap
from medmamba_jax.assessment.prediction_sets import SetThresholds, assess_sets, fit_sets, members
from medmamba_jax.assessment.thresholds import at_thresholds, with_sensitivity, youden
from medmamba_jax.metrics import Outputs, measure

NONE = Bootstrap(None, 0)  # no intervals


def multiclass(classes=3, images=400, sharpness=1.0, seed=0):
    """Labels drawn from the softmax of logits, which are then made too sharp or too flat."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((images, classes))
    labels = np.array([rng.choice(classes, p=p) for p in softmax(logits, axis=1)])
    names = tuple("abcdefgh"[:classes])
    return Outputs("multiclass", names, labels, sharpness * logits)


def multilabel(images=400, sharpness=1.0):
    rng = np.random.default_rng(1)
    logits = 2 * rng.standard_normal((images, 2))
    labels = (rng.random((images, 2)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    labels[rng.random((images, 2)) < 0.1] = np.nan
    return Outputs("multilabel", ("a", "b"), labels, sharpness * logits)


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_the_temperature_is_that_of_a_search_by_hand(sharpness):
    outputs = multiclass(sharpness=sharpness)
    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 4001))
    rows = np.arange(400)
    losses = [-log_softmax(outputs.logits / t, 1)[rows, outputs.labels].mean() for t in grid]
    found = fit_temperature(outputs)
    assert found == pytest.approx(grid[np.argmin(losses)], rel=2e-3)
    assert found == pytest.approx(sharpness, rel=0.2)  # the labels were drawn like that
    cooled = at_temperature(outputs, found)
    assert (cooled.predicted == outputs.predicted).all()
    assert measure(cooled)["loss"] == pytest.approx(min(losses), rel=1e-6)


def test_the_temperature_of_a_multilabel_set_uses_known_labels_only():
    outputs = multilabel(sharpness=2.0)
    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 4001))
    known = ~np.isnan(outputs.labels)
    logits, labels = outputs.logits[known], outputs.labels[known]
    signed = np.where(labels == 1, -logits, logits)
    losses = [np.mean(np.logaddexp(0, signed / t)) for t in grid]
    assert fit_temperature(outputs) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


def test_outputs_without_an_error_have_the_smallest_temperature():
    outputs = Outputs("multiclass", ("a", "b"), np.array([0, 1]), np.array([[2.0, 0], [0, 2]]))
    assert fit_temperature(outputs) == pytest.approx(0.05, rel=0.1)


def test_a_temperature_at_a_bound_is_doubted(tmp_path):
    logits = np.array([[2.0, 0], [0, 2]])
    right, wrong = (
        Outputs("multiclass", ("a", "b"), np.array(x), logits) for x in ([0, 1], [1, 0])
    )
    for outputs, bound in ((right, "0.05"), (wrong, "20")):
        calibration = calibrate(outputs, 1)
        assert "0.05 to 20" in doubt_about(calibration.temperature)
        assert doubt_about(calibration.temperature).startswith(f"The temperature {bound} lies at")
        write_calibration(tmp_path, calibration)
        assert json.loads((tmp_path / FILE).read_text())["temperature_at_bound"] is True
        assert read_calibration(tmp_path) == calibration
    inside = calibrate(multiclass(3), 1)
    assert doubt_about(inside.temperature) == doubt_about(1.0) == ""
    assert inside.to_dict()["temperature_at_bound"] is False
    before = {k: v for k, v in inside.to_dict().items() if k != "temperature_at_bound"}
    assert type(inside).from_dict(before) == inside  # an earlier version wrote it


def test_thresholds_are_those_of_a_search_by_hand():
    outputs = multiclass(2, 120)
    row = outputs.by_class["b"]
    candidates = np.unique(row.probability)
    sensitivity = np.array([(row.probability[row.actual] >= t).mean() for t in candidates])
    specificity = np.array([(row.probability[~row.actual] < t).mean() for t in candidates])
    best = (sensitivity + specificity).max()
    chosen = youden(row)
    at = np.flatnonzero(candidates == chosen)[0]
    assert sensitivity[at] + specificity[at] == pytest.approx(best)
    assert with_sensitivity(0.95, row) == candidates[sensitivity >= 0.95].max()
    one_side = Outputs("multiclass", ("a", "b"), np.zeros(9, int), np.zeros((9, 2))).by_class["a"]
    assert youden(one_side) is None and with_sensitivity(0.9, one_side) is None


@pytest.mark.parametrize("make", [lambda: multiclass(3), multilabel])
def test_thresholds_are_applied_to_other_images(make):
    outputs = make()
    chosen = {name: {"youden": 0.4, "sensitivity_90": None} for name in outputs.class_names}
    found = at_thresholds(outputs, chosen, Bootstrap(None, 200))
    for k, name in enumerate(outputs.class_names):
        assert set(found[name]) == {"youden"}
        cells = found[name]["youden"]
        known = outputs.known(name)
        shown = outputs.probabilities[known, k] >= 0.4
        labels = outputs.labels if outputs.task == "multiclass" else outputs.labels[known, k]
        actual = labels == (k if outputs.task == "multiclass" else 1)
        assert cells["threshold"] == 0.4
        assert cells["sensitivity"] == pytest.approx(shown[actual].mean())
        assert cells["specificity"] == pytest.approx((~shown[~actual]).mean())
        assert cells["precision"] == pytest.approx(actual[shown].mean())
        assert cells["npv"] == pytest.approx((~actual[~shown]).mean())
        low, high = cells["sensitivity_interval"]
        assert low < cells["sensitivity"] < high


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("by_class", [False, True])
def test_sets_are_those_of_crepes(level, by_class):
    val, test = multiclass(4, 200), multiclass(4, 300, seed=1)
    sets = members(test.probabilities, fit_sets(val, level), by_class=by_class)
    scores = 1 - val.probabilities[np.arange(200), val.labels]
    classifier = crepes.ConformalClassifier()
    bins = {"bins": val.labels} if by_class else {}
    classifier.fit(scores, **bins)
    for k in range(4):  # crepes takes one bin for each image
        bins = {"bins": np.full(300, k)} if by_class else {}
        column = np.repeat(1 - test.probabilities[:, [k]], 1, axis=1)
        inside = classifier.predict_set(column, confidence=level, smoothing=False, **bins)
        np.testing.assert_array_equal(sets[:, k], inside[:, 0].astype(bool))


def test_coverage_and_size_are_counted():
    outputs = Outputs(
        "multiclass",
        ("a", "b", "c"),
        np.array([0, 0, 1, 1]),
        np.log([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.45, 0.45, 0.1], [0.34, 0.33, 0.33]]),
    )
    found = assess_sets(outputs, SetThresholds(0.56, [0.3, 0.56, 0]), NONE)
    # With 0.56, classes of 0.44 and more are in the set.
    assert found["of_all"]["coverage"] == 0.5 and found["of_all"]["mean_size"] == 1.0
    assert found["of_all"]["empty"] == 0.25 and found["of_all"]["single"] == 0.5
    assert found["of_all"]["class_coverage"] == {"a": 0.5, "b": 0.5, "c": None}
    assert found["by_class"]["class_coverage"] == {"a": 0.0, "b": 0.5, "c": None}


def test_few_images_put_every_class_into_every_set():
    few = multiclass(2, 8)
    thresholds = fit_sets(few, 0.9)
    assert thresholds.of_all == 1.0 and members(few.probabilities, thresholds).all()


def test_sets_hold_the_true_class_as_often_as_promised():
    held = []
    for seed in range(60):
        val, test = multiclass(3, 60, seed=seed), multiclass(3, 60, seed=seed + 1000)
        held.append(assess_sets(test, fit_sets(val, 0.9), NONE)["of_all"]["coverage"])
    assert 0.885 < np.mean(held) < 0.93  # 0.9 to 0.9 + 1 / 61 expected; s.e. 0.007


def test_a_calibration_survives_the_trip_to_the_disk(tmp_path):
    for outputs in (multiclass(3), multilabel()):
        calibration = calibrate(outputs, epoch=7)
        write_calibration(tmp_path, calibration)
        found = read_calibration(tmp_path)
        assert found == calibration and found.epoch == 7 and found.images == 400
        assert set(found.thresholds) == set(outputs.class_names)
        assert set(found.sets) == ({"0.9", "0.95"} if outputs.task == "multiclass" else set())
    (tmp_path / FILE).write_text(json.dumps({"epoch": 7}))
    with pytest.raises(mm.UserError, match="evaluate the run again"):
        read_calibration(tmp_path)
    turned = {**calibration.to_dict(), "temperature": -1.0}  # it would turn every answer round
    (tmp_path / FILE).write_text(json.dumps(turned))
    with pytest.raises(mm.UserError, match="damaged"):
        read_calibration(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(mm.UserError, match="damaged"):
        read_calibration(tmp_path)
    (tmp_path / FILE).unlink()
    assert read_calibration(tmp_path) is None


def test_logits_and_probabilities_agree():
    outputs = multiclass(3)
    p = np.exp(outputs.logits - logsumexp(outputs.logits, axis=1, keepdims=True))
    np.testing.assert_allclose(outputs.by_class["b"].probability, p[:, 1])


def test_without_a_known_label_the_temperature_is_one():
    outputs = multilabel()
    nothing = Outputs("multilabel", ("a", "b"), np.full((400, 2), np.nan), outputs.logits)
    assert fit_temperature(nothing) == 1.0
