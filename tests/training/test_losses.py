"""The training losses, with their mean, against PyTorch, scikit-learn and closed forms."""

import functools

import jax
import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import wasserstein_distance
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from medmamba_jax.training.losses import (
    LOSSES,
    Loss,
    balanced_class_weights,
    balanced_pos_weights,
    make_loss,
)


def mean(name, task):
    """Returns the function (logits, labels, weights and options) -> the loss of a batch."""

    def loss(logits, labels, *, weights=None, image_weights=None, **options):
        options = {option: options.get(option, 0.0) for option in LOSSES[name].options}
        return make_loss(name, task, weights, options)(logits, labels, image_weights)

    return loss


cross_entropy = mean("cross_entropy", "multiclass")
focal = mean("focal", "multiclass")
ordinal = mean("ordinal", "multiclass")
binary_cross_entropy = mean("binary_cross_entropy", "multilabel")
binary_focal = mean("focal", "multilabel")

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((32, 5))).astype(np.float32)
LABELS = RNG.integers(0, 5, 32)
WEIGHTS = RNG.uniform(0.2, 4, 5).astype(np.float32)
# Of the same images, a yes (1), a no (0) or an unknown (NaN) for each class.
KNOWN = (RNG.random((32, 5)) < 0.4).astype(np.float32)
MASKED = np.where(RNG.random((32, 5)) < 0.2, np.nan, KNOWN).astype(np.float32)


def test_plain_is_log_loss():
    p = np.exp(LOGITS.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    expected = log_loss(LABELS, p, labels=range(5))
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), expected, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_equals_torch(torch, smoothing, weights):
    loss = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.from_numpy(weights), label_smoothing=smoothing
    )
    expected = loss(torch.from_numpy(LOGITS), torch.from_numpy(LABELS)).item()
    actual = cross_entropy(LOGITS, LABELS, label_smoothing=smoothing, weights=weights)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_smoothing_by_hand():
    logits = np.log(np.array([[0.7, 0.2, 0.1]], np.float32))
    target = np.array([0.3 / 3, 0.7 + 0.3 / 3, 0.3 / 3])
    expected = -(target * np.log([0.7, 0.2, 0.1])).sum()
    actual = cross_entropy(logits, np.array([1]), label_smoothing=0.3)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_weighted_mean_divides_by_the_sum_of_weights():
    logits = np.log(np.array([[0.9, 0.1], [0.4, 0.6]], np.float32))
    expected = (1 * -np.log(0.9) + 3 * -np.log(0.6)) / (1 + 3)
    actual = cross_entropy(logits, np.array([0, 1]), weights=np.array([1.0, 3.0]))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_balanced_weights_are_scikit_learns():
    labels = np.repeat([0, 1, 2], [50, 10, 3])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_class_weights(labels, "abc"), expected, rtol=1e-6)


def test_balanced_weights_need_every_class():
    with pytest.raises(ValueError, match=r"no training image of classes \['b'\]"):
        balanced_class_weights(np.array([0, 2]), "abc")


class TestFocal:
    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_gamma_0_is_cross_entropy(self, weights):
        expected = cross_entropy(LOGITS, LABELS, weights=weights)
        actual = focal(LOGITS, LABELS, focal_gamma=0.0, weights=weights)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_closed_form(self, gamma, weights):
        p = softmax(LOGITS.astype(np.float64), axis=1)[np.arange(32), LABELS]
        w = np.ones(32) if weights is None else weights[LABELS].astype(np.float64)
        expected = (w * -((1 - p) ** gamma) * np.log(p)).sum() / w.sum()
        actual = focal(LOGITS, LABELS, focal_gamma=gamma, weights=weights)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
    def test_certainty_has_a_finite_gradient(self, gamma):
        logits = np.array([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], np.float32)
        value, grad = jax.value_and_grad(focal)(logits, np.array([0, 0]), focal_gamma=gamma)
        np.testing.assert_allclose(value, 400 / 2, rtol=1e-6)
        assert np.isfinite(grad).all()
        np.testing.assert_allclose(grad[1], [-0.5, 0.5, 0], atol=1e-6)


class TestOrdinal:
    def test_is_a_squared_distance_along_the_classes(self):
        p = np.array([0.1, 0.2, 0.3, 0.4])
        for label in range(4):
            step = np.arange(4) >= label
            expected = ((np.cumsum(p) - step) ** 2).sum()
            logits = np.log(p, dtype=np.float64).astype(np.float32)[None]
            np.testing.assert_allclose(ordinal(logits, np.array([label])), expected, rtol=1e-5)

    def test_certain_mistakes_cost_their_distance_in_classes(self):
        for wrong in range(4):
            logits = np.where(np.arange(4) == wrong, 50.0, 0.0).astype(np.float32)[None]
            # All of the mass moves: squares of 0 and 1 are the earth mover's distance itself.
            expected = wasserstein_distance([wrong], [0])
            np.testing.assert_allclose(ordinal(logits, np.array([0])), expected, atol=1e-6)

    def test_weighted_mean(self):
        each = [float(ordinal(LOGITS[i : i + 1], LABELS[i : i + 1])) for i in range(32)]
        np.testing.assert_allclose(
            ordinal(LOGITS, LABELS, weights=WEIGHTS),
            np.average(each, weights=WEIGHTS[LABELS]),
            rtol=1e-5,
        )


class TestBinaryCrossEntropy:
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_equals_torch(self, torch, smoothing, weights):
        loss = torch.nn.BCEWithLogitsLoss(
            pos_weight=None if weights is None else torch.from_numpy(weights)
        )
        target = KNOWN * (1 - smoothing) + smoothing / 2
        expected = loss(torch.from_numpy(LOGITS), torch.from_numpy(target)).item()
        actual = binary_cross_entropy(LOGITS, KNOWN, label_smoothing=smoothing, weights=weights)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)

    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_unknown_labels_are_left_out_of_the_mean(self, weights):
        p = expit(LOGITS.astype(np.float64))
        terms = -np.where(
            MASKED == 1, (1 if weights is None else weights) * np.log(p), np.log1p(-p)
        )
        expected = terms[~np.isnan(MASKED)].mean()
        actual, grad = jax.value_and_grad(binary_cross_entropy)(LOGITS, MASKED, weights=weights)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        assert ((np.asarray(grad) == 0) == np.isnan(MASKED)).all()

    def test_one_class_is_log_loss(self):
        expected = log_loss(KNOWN[:, 0], expit(LOGITS[:, 0].astype(np.float64)))
        actual = binary_cross_entropy(LOGITS[:, :1], KNOWN[:, :1])
        np.testing.assert_allclose(actual, expected, rtol=1e-6)

    @pytest.mark.parametrize(
        "loss", [binary_cross_entropy, functools.partial(binary_focal, focal_gamma=2.0)]
    )
    def test_nothing_known_teaches_nothing(self, loss):
        value, grad = jax.value_and_grad(loss)(LOGITS, np.full((32, 5), np.nan, np.float32))
        assert value == 0 and not np.asarray(grad).any()


class TestBinaryFocal:
    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_gamma_0_is_cross_entropy(self, weights):
        expected = binary_cross_entropy(LOGITS, MASKED, weights=weights)
        actual = binary_focal(LOGITS, MASKED, focal_gamma=0.0, weights=weights)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_closed_form(self, gamma, weights):
        p = expit(LOGITS.astype(np.float64))
        w = 1 if weights is None else weights
        positive, negative = w * (1 - p) ** gamma * np.log(p), p**gamma * np.log1p(-p)
        expected = -np.where(MASKED == 1, positive, negative)[~np.isnan(MASKED)].mean()
        actual = binary_focal(LOGITS, MASKED, focal_gamma=gamma, weights=weights)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
    def test_certainty_has_a_finite_gradient(self, gamma):
        logits, labels = np.array([[200.0, -200.0]], np.float32), np.ones((1, 2), np.float32)
        value, grad = jax.value_and_grad(binary_focal)(logits, labels, focal_gamma=gamma)
        np.testing.assert_allclose(value, 200 / 2, rtol=1e-6)
        np.testing.assert_allclose(grad, [[0, -0.5]], atol=1e-6)


class TestPosWeights:
    def test_negatives_by_positives_of_what_is_known(self):
        labels = np.array([[1, 0], [0, np.nan], [0, 1], [np.nan, 1], [0, 1]], np.float32)
        np.testing.assert_allclose(balanced_pos_weights(labels, "ab"), [3, 1 / 3], rtol=1e-6)

    def test_both_sides_weigh_alike(self):
        weights = balanced_pos_weights(MASKED, "abcde")
        positives, negatives = (MASKED == 1).sum(0), (MASKED == 0).sum(0)
        np.testing.assert_allclose(weights * positives, negatives, rtol=1e-6)

    @pytest.mark.parametrize("side", [0, 1])
    def test_need_both(self, side):
        labels = np.array([[0, side], [1, side], [1, np.nan]])
        with pytest.raises(ValueError, match=r"classes \['b'\] lack either"):
            balanced_pos_weights(labels, "ab")


def image_terms():
    """Of every loss: the function with its settings, the labels, and float64 terms and divisors.

    The loss is the sum of the terms, (32,) or (32, 5), by that of the divisors.
    """
    logits = LOGITS.astype(np.float64)
    p, rows = softmax(logits, axis=1), np.arange(32)
    own, w = p[rows, LABELS], WEIGHTS.astype(np.float64)[LABELS]
    target = 0.9 * np.eye(5)[LABELS] + 0.1 / 5
    distance = ((np.cumsum(p, 1) - (np.arange(5) >= LABELS[:, None])) ** 2).sum(1)
    yes, known = expit(logits), ~np.isnan(MASKED)
    positive = MASKED == 1
    smooth = 0.8 * positive + 0.1
    binary = -WEIGHTS * smooth * np.log(yes) - (1 - smooth) * np.log1p(-yes)
    focused = -np.where(positive, WEIGHTS * (1 - yes) ** 2 * np.log(yes), yes**2 * np.log1p(-yes))
    smoothed = -(target * WEIGHTS * np.log(p)).sum(1)
    return {
        "cross_entropy": (cross_entropy, {}, LABELS, -np.log(own), np.ones(32)),
        "cross_entropy, class weights": (
            cross_entropy,
            {"label_smoothing": 0.1, "weights": WEIGHTS},
            LABELS,
            smoothed,
            w,
        ),
        "focal": (
            focal,
            {"focal_gamma": 2.0},
            LABELS,
            -((1 - own) ** 2) * np.log(own),
            np.ones(32),
        ),
        "focal, class weights": (
            focal,
            {"focal_gamma": 2.0, "weights": WEIGHTS},
            LABELS,
            -w * (1 - own) ** 2 * np.log(own),
            w,
        ),
        "ordinal": (ordinal, {}, LABELS, distance, np.ones(32)),
        "ordinal, class weights": (
            ordinal,
            {"weights": WEIGHTS},
            LABELS,
            w * distance,
            w,
        ),
        "binary_cross_entropy": (
            binary_cross_entropy,
            {"label_smoothing": 0.2, "weights": WEIGHTS},
            MASKED,
            np.where(known, binary, 0),
            known,
        ),
        "binary_focal": (
            binary_focal,
            {"focal_gamma": 2.0, "weights": WEIGHTS},
            MASKED,
            np.where(known, focused, 0),
            known,
        ),
    }


@pytest.mark.parametrize("name", image_terms())
class TestImageWeights:
    def test_closed_form(self, name):
        loss, settings, labels, terms, divisors = image_terms()[name]
        weights = np.random.default_rng(1).uniform(0.1, 5, 32).astype(np.float32)
        per_image = weights.astype(np.float64).reshape(-1, *[1] * (terms.ndim - 1))
        expected = (per_image * terms).sum() / (per_image * divisors).sum()
        actual = loss(LOGITS, labels, **settings, image_weights=weights)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)

    def test_ones_are_none(self, name):
        loss, settings, labels, *_ = image_terms()[name]
        gradient = jax.value_and_grad(functools.partial(loss, **settings))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9),
            gradient(LOGITS, labels, image_weights=np.ones(32, np.float32)),
            gradient(LOGITS, labels),
        )

    def test_two_is_the_image_twice(self, name):
        loss, settings, labels, *_ = image_terms()[name]
        times = np.random.default_rng(2).integers(1, 4, 32)
        rows = np.repeat(np.arange(32), times)
        gradient = jax.value_and_grad(functools.partial(loss, **settings))
        value, grad = gradient(LOGITS, labels, image_weights=times.astype(np.float32))
        expected, of_each = gradient(LOGITS[rows], labels[rows])
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        summed = np.zeros_like(LOGITS)
        np.add.at(summed, rows, of_each)
        np.testing.assert_allclose(grad, summed, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "loss", [binary_cross_entropy, functools.partial(binary_focal, focal_gamma=2.0)]
)
def test_small_image_weights_divide_by_their_own_sum(loss):
    labels = np.full((32, 5), np.nan, np.float32)
    labels[3, 2] = 1
    weights = np.full(32, 1e-3, np.float32)
    np.testing.assert_allclose(
        loss(LOGITS, labels, image_weights=weights), loss(LOGITS, labels), rtol=1e-6
    )
    value, grad = jax.value_and_grad(loss)(
        LOGITS, np.full((32, 5), np.nan, np.float32), image_weights=weights
    )
    assert value == 0 and not np.asarray(grad).any()


def test_a_loss_of_ones_own_is_one_row(monkeypatch):
    """The mean absolute error of the label's probability; it reads no option."""

    def absolute(logits, labels, class_weights):
        p = jax.nn.softmax(logits)
        return (1 - p[np.arange(len(labels)), labels]) * class_weights[labels]

    monkeypatch.setitem(LOSSES, "absolute", Loss({"multiclass": absolute}))
    p = softmax(LOGITS.astype(np.float64), axis=1)[np.arange(32), LABELS]
    images = RNG.uniform(0.5, 2, 32).astype(np.float32)
    w = images * WEIGHTS[LABELS].astype(np.float64)
    actual = make_loss("absolute", "multiclass", WEIGHTS, {})(LOGITS, LABELS, images)
    np.testing.assert_allclose(actual, (w * (1 - p)).sum() / w.sum(), rtol=1e-5)
