"""The training loss."""

import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: jax.Array | None = None,
) -> jax.Array:
    """Mean cross-entropy as `torch.nn.CrossEntropyLoss(weight=, label_smoothing=)` defines it.

    With smoothing e, the target of class c is 1 - e + e / K for the label and e / K elsewhere.
    With class weights w, every class's term is weighted by its w and the sum is divided by the
    sum of the labels' weights, not by their number.

    Args:
        logits: float32 (b, K).
        labels: int32 (b,).
        label_smoothing: e, in [0, 1).
        class_weights: float32 (K,), or None for 1.

    Returns:
        float32 scalar.
    """
    log_p = jax.nn.log_softmax(logits)
    num_classes = logits.shape[-1]
    weights = jnp.ones(num_classes) if class_weights is None else class_weights
    one_hot = jax.nn.one_hot(labels, num_classes)
    target = (1 - label_smoothing) * one_hot + label_smoothing / num_classes
    return -(target * weights * log_p).sum() / (one_hot * weights).sum()


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Weights n / (K n_c): inverse to each class's count n_c, 1 where all are equal.

    Args:
        labels: integers (n,), of the training split only.
        num_classes: K.

    Returns:
        float32 (K,).

    Raises:
        ValueError: if a class has no image.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        empty = np.flatnonzero(counts == 0).tolist()
        raise ValueError(f"train.class_weights='balanced': no training image of classes {empty}")
    return (len(labels) / (num_classes * counts)).astype(np.float32)
