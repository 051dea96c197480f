"""The table of training losses.

A loss gives a value for each image, or for each label of a multi-label set; `make_loss` weighs
these and takes their mean, in one place. To add a loss, add a row to `LOSSES`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medmamba_jax.data import Dataset
from medmamba_jax.errors import UserError

if TYPE_CHECKING:  # `TrainConfig` reads the table below
    from medmamba_jax.training.config import TrainConfig


class Values(Protocol):
    """A loss before the mean: (logits (b, K), labels, class_weights (K,), options) -> values.

    Of a multi-class set, labels are int32 (b,) and values float32 (b,); of a multi-label set both
    are (b, K), and labels are 1 and 0. The function multiplies by the class weights itself, because
    what they weigh differs from loss to loss.
    """

    __call__: Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A training loss.

    Attributes:
        of_task: task -> the loss before the mean.
        options: fields of `TrainConfig` that the loss reads; they are its keyword arguments.
        automatic: tasks for which `train.loss = "auto"` means this loss.
    """

    of_task: Mapping[str, Values]
    options: Sequence[str] = ()
    automatic: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class MeanLoss:
    """The loss of a batch: the weighted mean of the values of its images or labels.

    Attributes:
        task: "multiclass" or "multilabel".
        values: the loss before the mean, with its options.
        class_weights: as for `make_loss`.
    """

    task: str
    values: Callable[..., jax.Array]
    class_weights: np.ndarray | None

    def __call__(
        self,
        logits: jax.Array,
        labels: jax.Array,
        image_weights: jax.Array | None = None,
        divisor: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the loss.

        Args:
            logits: float32 (b, K).
            labels: int32 (b,), or float32 (b, K) with 1, 0 and NaN.
            image_weights: float32 (b,), or None for 1.
            divisor: what the sum is divided by; None means `divisor(labels, image_weights)`. If
                these images are a part of a batch, the divisor of the whole batch makes the losses
                of the parts add up to the loss of the batch.

        Returns:
            float32 scalar.
        """
        if divisor is None:
            divisor = self.divisor(labels, image_weights)
        by_class, by_image = jnp.ones(logits.shape[-1]), _or_ones(image_weights, labels)
        if self.class_weights is not None:
            by_class = jnp.asarray(self.class_weights)
        if self.task == "multiclass":
            return (by_image * self.values(logits, labels, by_class)).sum() / divisor
        known = ~jnp.isnan(labels)
        values = self.values(logits, jnp.where(known, labels, 0), by_class)
        return jnp.where(known, by_image[:, None] * values, 0).sum() / divisor

    def divisor(self, labels: jax.Array, image_weights: jax.Array | None) -> jax.Array:
        """Returns what the sum over a batch is divided by: a scalar."""
        by_image = _or_ones(image_weights, labels)
        if self.task == "multilabel":
            total = jnp.where(jnp.isnan(labels), 0, by_image[:, None]).sum()
            return jnp.where(total > 0, total, 1)
        if self.class_weights is not None:
            by_image = by_image * jnp.asarray(self.class_weights)[labels]
        return by_image.sum()


def _or_ones(image_weights: jax.Array | None, labels: jax.Array) -> jax.Array:
    return jnp.ones(len(labels)) if image_weights is None else image_weights


def cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: jax.Array, *, label_smoothing: float
) -> jax.Array:
    """Cross-entropy as `torch.nn.CrossEntropyLoss(weight=, label_smoothing=)` defines it.

    With smoothing e, the target of class c is 1 - e + e / K for the label and e / K elsewhere.
    Every class's term is multiplied by that class's weight.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets * class_weights)


def focal(
    logits: jax.Array, labels: jax.Array, class_weights: jax.Array, *, focal_gamma: float
) -> jax.Array:
    """-(1 - p)**gamma log p, where p is the label's probability (Lin et al., 1708.02002).

    An image that the model classifies well already counts less; the larger gamma, the less. Gamma 0
    gives the cross-entropy. The label's class weight multiplies the value.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    log_p = jnp.where(is_label, jax.nn.log_softmax(logits), 0).sum(-1)
    # log(1 - p) from the other logits: from p itself, it and its gradient overflow as p nears 1.
    others = jax.nn.logsumexp(logits, axis=-1, where=~is_label)
    log_rest = others - jax.nn.logsumexp(logits, axis=-1)
    return -jnp.exp(focal_gamma * log_rest) * log_p * class_weights[labels]


def ordinal(logits: jax.Array, labels: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Squared earth mover's distance from the label, for classes that have an order.

    The sum over classes of the squared difference of two cumulative distributions, the predicted
    one and the label's (Hou, Yu and Samaras, arXiv 1611.05916). The further a mistake is from the
    label, in classes, the more it costs. The label's class weight multiplies the value.
    """
    difference = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.square(jnp.cumsum(difference, -1)).sum(-1) * class_weights[labels]


def binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: jax.Array, *, label_smoothing: float
) -> jax.Array:
    """The terms of `torch.nn.BCEWithLogitsLoss(pos_weight=)`, with targets 1 - e / 2 and e / 2.

    The class weights multiply the terms of label 1.
    """
    target = (1 - label_smoothing) * labels + label_smoothing / 2
    positive = class_weights * target * jax.nn.log_sigmoid(logits)
    return -positive - (1 - target) * jax.nn.log_sigmoid(-logits)


def binary_focal(
    logits: jax.Array, labels: jax.Array, class_weights: jax.Array, *, focal_gamma: float
) -> jax.Array:
    """`focal` for a yes or no on every class; the class weights multiply the terms of label 1."""
    signed = jnp.where(labels == 1, logits, -logits)
    weights = jnp.where(labels == 1, class_weights, 1)
    # A power of 1 - p has no finite gradient where that rounds to 0; of its logarithm it has.
    modulation = jnp.exp(focal_gamma * jax.nn.log_sigmoid(-signed))
    return -weights * modulation * jax.nn.log_sigmoid(signed)


# Name -> loss. `train.loss` takes these names, and "auto".
LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(
        {"multiclass": cross_entropy}, options=("label_smoothing",), automatic=("multiclass",)
    ),
    "binary_cross_entropy": Loss(
        {"multilabel": binary_cross_entropy},
        options=("label_smoothing",),
        automatic=("multilabel",),
    ),
    "focal": Loss({"multiclass": focal, "multilabel": binary_focal}, options=("focal_gamma",)),
    "ordinal": Loss({"multiclass": ordinal}),
}


def training_loss(config: "TrainConfig", dataset: Dataset) -> tuple[MeanLoss, str]:
    """Returns the loss of a run, and its name and options as text.

    Weights that are left to the data come from the training split alone.

    Raises:
        UserError: a setting does not fit the data set's task, or its labels cannot satisfy it.
    """
    task, labels = dataset.task, dataset.splits["train"].labels
    if task == "multilabel" and np.isnan(labels).all():
        raise UserError("no label of split 'train' is known; label some of its images")
    name = _name(config.loss, dataset)
    weights = None
    for field, own_task, balanced, instead in (
        ("class_weights", "multiclass", balanced_class_weights, "train.pos_weights"),
        ("pos_weights", "multilabel", balanced_pos_weights, "train.class_weights"),
    ):
        if getattr(config, field) == "balanced":
            if task != own_task:
                raise UserError(
                    f"train.{field} is for {own_task} labels, and those of {dataset.name!r} are"
                    f" {task}; use {instead}"
                )
            weights = balanced(labels, dataset.class_names)
            text_of_weights = f"{field} {', '.join(f'{w:.3g}' for w in weights)}"
    options = {option: getattr(config, option) for option in LOSSES[name].options}
    parts = [name, *(f"{option} {value:g}" for option, value in options.items() if value)]
    if weights is not None:
        parts.append(text_of_weights)
    return make_loss(name, task, weights, options), "; ".join(parts)


def _name(name: str, dataset: Dataset) -> str:
    """Resolves "auto"; raises UserError if the loss is not for the data set's task."""
    task = dataset.task
    if name == "auto":
        return next(name for name, loss in LOSSES.items() if task in loss.automatic)
    if task not in LOSSES[name].of_task:
        fitting = [name for name, loss in LOSSES.items() if task in loss.of_task]
        raise UserError(
            f"train.loss={name!r} is not for {task} labels, which {dataset.name!r} has; choose one"
            f" of {fitting}, or 'auto'"
        )
    return name


def make_loss(
    name: str, task: str, class_weights: np.ndarray | None, options: Mapping[str, Any]
) -> MeanLoss:
    """Returns the loss of a batch: the weighted mean of the values of its images or labels.

    Image weights multiply the values and count in the divisor, so that an image of weight 2 counts
    as two of weight 1. Of a multi-class set the divisor also counts each image by its class's
    weight, as PyTorch does. Of a multi-label set the mean is over the known labels; a batch in
    which nothing is known has the loss 0.

    Args:
        name: a name in `LOSSES`.
        task: "multiclass" or "multilabel".
        class_weights: float32 (K,), or None for 1: the weights of classes, or of a multi-label set
            the weights of label 1.
        options: the loss's keyword arguments.
    """
    values = functools.partial(LOSSES[name].of_task[task], **options)
    return MeanLoss(task, values, class_weights)


def balanced_class_weights(labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Weights n / (K n_c): inverse to each class's number of images n_c, 1 where all are equal.

    Args:
        labels: integers (n,), of the training split only.
        class_names: K names.

    Returns:
        float32 (K,).

    Raises:
        UserError: a class has no image.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if not counts.all():
        empty = [class_names[c] for c in np.flatnonzero(counts == 0).tolist()]
        raise UserError(f"train.class_weights='balanced': no training image of classes {empty}")
    return (len(labels) / (len(class_names) * counts)).astype(np.float32)


def balanced_pos_weights(labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Weights of label 1, negatives / positives of each class, so that both sides weigh alike.

    Args:
        labels: (n, K) of 1, 0 and NaN, of the training split only.
        class_names: K names.

    Returns:
        float32 (K,).

    Raises:
        UserError: a class has no label 1 or no label 0.
    """
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    lacking = np.flatnonzero((positives == 0) | (negatives == 0))
    one_sided = [class_names[c] for c in lacking.tolist()]
    if one_sided:
        raise UserError(
            "train.pos_weights='balanced' needs training images that show a class and others that"
            f" do not; classes {one_sided} lack either: leave these classes out, or set"
            " train.pos_weights=none"
        )
    return (negatives / positives).astype(np.float32)
