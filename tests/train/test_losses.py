import numpy as np
import pytest
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from medmamba_jax.train.losses import balanced_class_weights, cross_entropy

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((32, 5))).astype(np.float32)
LABELS = RNG.integers(0, 5, 32)
WEIGHTS = RNG.uniform(0.2, 4, 5).astype(np.float32)


def test_plain_is_log_loss():
    p = np.exp(LOGITS.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    expected = log_loss(LABELS, p, labels=range(5))
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), expected, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_equals_torch(smoothing, weights):
    torch = pytest.importorskip("torch", reason="compares with PyTorch: the torch extra")
    loss = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.from_numpy(weights), label_smoothing=smoothing
    )
    expected = loss(torch.from_numpy(LOGITS), torch.from_numpy(LABELS)).item()
    actual = cross_entropy(LOGITS, LABELS, label_smoothing=smoothing, class_weights=weights)
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
    actual = cross_entropy(logits, np.array([0, 1]), class_weights=np.array([1.0, 3.0]))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_balanced_weights_are_scikit_learns():
    labels = np.repeat([0, 1, 2], [50, 10, 3])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_class_weights(labels, 3), expected, rtol=1e-6)


def test_balanced_weights_need_every_class():
    with pytest.raises(ValueError, match=r"no training image of classes \[1\]"):
        balanced_class_weights(np.array([0, 2]), 3)
