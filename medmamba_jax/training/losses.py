"""The training losses, each (logits, labels, settings) -> scalar, and weights from the labels.

Image weights, where given, make every loss the weighted mean over images: an image of weight 2
counts as two of weight 1.
"""

import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: jax.Array | None = None,
    image_weights: jax.Array | None = None,
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
        image_weights: float32 (b,), or None for 1.

    Returns:
        float32 scalar.
    """
    log_p = jax.nn.log_softmax(logits)
    num_classes = logits.shape[-1]
    weights = jnp.ones(num_classes) if class_weights is None else class_weights
    one_hot = jax.nn.one_hot(labels, num_classes)
    target = (1 - label_smoothing) * one_hot + label_smoothing / num_classes
    if image_weights is not None:
        weights = weights * image_weights[:, None]
    return -(target * weights * log_p).sum() / (one_hot * weights).sum()


def focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float,
    class_weights: jax.Array | None = None,
    image_weights: jax.Array | None = None,
) -> jax.Array:
    """Mean of -(1 - p)**gamma log p, p being the label's probability (Lin et al., 1708.02002).

    Images that are classified well already count less, the more so the larger gamma is; gamma 0
    is `cross_entropy`, whose weighted mean this takes, too.

    Args:
        logits: float32 (b, K).
        labels: int32 (b,).
        gamma: 0 or more.
        class_weights: float32 (K,), or None for 1.
        image_weights: float32 (b,), or None for 1.

    Returns:
        float32 scalar.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    log_p = jnp.where(is_label, jax.nn.log_softmax(logits), 0).sum(-1)
    # log(1 - p) from the other logits: from p itself, it and its gradient overflow as p nears 1.
    others = jax.nn.logsumexp(logits, axis=-1, where=~is_label)
    log_rest = others - jax.nn.logsumexp(logits, axis=-1)
    return _weighted_mean(-jnp.exp(gamma * log_rest) * log_p, labels, class_weights, image_weights)


def ordinal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    class_weights: jax.Array | None = None,
    image_weights: jax.Array | None = None,
) -> jax.Array:
    """Mean squared earth mover's distance from the label, for classes that have an order.

    The sum over classes of the squared difference of two cumulative distributions, the
    predicted one and the label's (Hou, Yu and Samaras, arXiv 1611.05916): a mistake costs more
    the further it is from the label, in classes.

    Args:
        logits: float32 (b, K); the order of the classes is theirs.
        labels: int32 (b,).
        class_weights: float32 (K,), or None for 1; a weighted mean as in `cross_entropy`.
        image_weights: float32 (b,), or None for 1.

    Returns:
        float32 scalar.
    """
    difference = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
    distance = jnp.square(jnp.cumsum(difference, -1)).sum(-1)
    return _weighted_mean(distance, labels, class_weights, image_weights)


def binary_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    pos_weights: jax.Array | None = None,
    image_weights: jax.Array | None = None,
) -> jax.Array:
    """Mean over the known labels of `torch.nn.BCEWithLogitsLoss(pos_weight=)`'s terms.

    Args:
        logits: float32 (b, K).
        labels: float32 (b, K): 1, 0, or NaN for what is not known and is left out of the mean.
        label_smoothing: e, in [0, 1): the targets are 1 - e / 2 and e / 2.
        pos_weights: float32 (K,), factors of the terms of label 1, or None for 1.
        image_weights: float32 (b,), or None for 1.

    Returns:
        float32 scalar; 0 where nothing is known.
    """
    target = (1 - label_smoothing) * (labels == 1) + label_smoothing / 2
    weights = 1 if pos_weights is None else pos_weights
    positive = weights * target * jax.nn.log_sigmoid(logits)
    negative = (1 - target) * jax.nn.log_sigmoid(-logits)
    return _known_mean(-positive - negative, labels, image_weights)


def binary_focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float,
    pos_weights: jax.Array | None = None,
    image_weights: jax.Array | None = None,
) -> jax.Array:
    """Mean over the known labels of -(1 - p)**gamma log p, p being the label's probability.

    `focal` for a yes or no on every class; gamma 0 is `binary_cross_entropy`.

    Args:
        logits: float32 (b, K).
        labels: float32 (b, K): 1, 0, or NaN for what is not known and is left out of the mean.
        gamma: 0 or more.
        pos_weights: float32 (K,), factors of the terms of label 1, or None for 1.
        image_weights: float32 (b,), or None for 1.

    Returns:
        float32 scalar; 0 where nothing is known.
    """
    is_positive = labels == 1
    signed = jnp.where(is_positive, logits, -logits)
    weights = jnp.where(is_positive, 1 if pos_weights is None else pos_weights, 1)
    # A power of 1 - p has no finite gradient where that rounds to 0; of its logarithm it has.
    modulated = jnp.exp(gamma * jax.nn.log_sigmoid(-signed)) * jax.nn.log_sigmoid(signed)
    return _known_mean(-weights * modulated, labels, image_weights)


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


def balanced_pos_weights(labels: np.ndarray) -> np.ndarray:
    """Weights of label 1, negatives / positives of each class, that make both sides weigh alike.

    Args:
        labels: (n, K) of 1, 0 and NaN, of the training split only.

    Returns:
        float32 (K,).

    Raises:
        ValueError: if a class has no label 1 or no label 0.
    """
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    one_sided = np.flatnonzero((positives == 0) | (negatives == 0)).tolist()
    if one_sided:
        raise ValueError(
            "train.pos_weights='balanced' needs training images that show a class and others that"
            f" do not; classes {one_sided} lack either: leave them out, or say 'none'"
        )
    return (negatives / positives).astype(np.float32)


def _weighted_mean(values, labels, class_weights, image_weights):
    weights = jnp.ones_like(values) if image_weights is None else image_weights
    if class_weights is not None:
        weights = weights * jnp.asarray(class_weights)[labels]
    return (weights * values).sum() / weights.sum()


def _known_mean(values, labels, image_weights):
    known = ~jnp.isnan(labels)
    weights = jnp.where(known, 1 if image_weights is None else image_weights[:, None], 0)
    total = weights.sum()
    return jnp.where(known, weights * values, 0).sum() / jnp.where(total > 0, total, 1)
