"""The `train` section of a run's configuration."""

import dataclasses
import math
from typing import Any

OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("constant", "cosine", "step")
DECAYED = ("all", "weights")
LOSSES = ("auto", "cross_entropy", "binary_cross_entropy", "focal", "ordinal")
WEIGHTS = ("none", "balanced")
SAMPLERS = ("shuffle", "balanced")
# Name of a validation metric -> whether more is better. `metrics.LOGGED` has those of each task.
BEST_METRICS = {
    "auc": True,
    "average_precision": True,
    "accuracy": True,
    "label_accuracy": True,
    "subset_accuracy": True,
    "balanced_accuracy": True,
    "f1": True,
    "loss": False,
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Defaults are the paper's recipe.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all devices.
        seed: of the parameters, the order of images, augmentation, dropout and drop path.
        lr: peak learning rate.
        optimizer: "adamw", or "adam" (with `torch.optim.Adam`'s meaning of weight_decay).
        weight_decay: coefficient.
        decay: which tensors decay: "all", as PyTorch does unasked, or "weights", which leaves
            out norms, biases, A_log and D.
        schedule: "constant", "cosine" (to 0 at the last step) or "step".
        warmup_epochs: linear warm-up from 0 before the schedule; may be a fraction.
        step_epochs: epochs after which the "step" schedule multiplies by `step_factor`.
        step_factor: see `step_epochs`.
        clip_norm: largest global norm of the gradients; 0 means no clipping.
        loss: of one class an image "cross_entropy", "focal" or "ordinal" (the classes' order
            counts); of multi-label sets "binary_cross_entropy" or "focal"; see
            `medmamba_jax.training.losses`. "auto" is the cross-entropy that fits the data set.
        focal_gamma: exponent of the "focal" loss.
        label_smoothing: in [0, 1); of the cross-entropies only.
        class_weights: of one class an image: "none", or "balanced": weights inverse to the
            classes' training counts.
        pos_weights: of multi-label sets: "none", or "balanced": in training, the images that show
            a class weigh as much as those that do not.
        sampler: order of the training images: "shuffle", or "balanced": classes come equally
            often, so that images of small ones come several times an epoch.
        best_metric: validation metric that chooses the best checkpoint, a name in `BEST_METRICS`;
            over classes it is the plain mean, and "loss" is the plain cross-entropy. "auto" is
            "auc", or "balanced_accuracy" where the largest class has more than 3 times the
            training images of the smallest (of multi-label sets always "auc").
        patience: epochs without a better `best_metric` after which training stops; 0 means never.

    Raises:
        ValueError: if a field holds a value that is not allowed.
    """

    epochs: int = 150
    batch_size: int = 64
    seed: int = 0
    lr: float = 1e-4
    optimizer: str = "adamw"
    weight_decay: float = 1e-4
    decay: str = "all"
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    step_epochs: tuple[int, ...] = (50, 75)
    step_factor: float = 0.1
    clip_norm: float = 0.0
    loss: str = "auto"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weights: str = "none"
    pos_weights: str = "none"
    sampler: str = "shuffle"
    best_metric: str = "auto"
    patience: int = 0

    def __post_init__(self):
        is_sequence = isinstance(self.step_epochs, (tuple, list))
        self._require("step_epochs", is_sequence, "a tuple of positive integers")
        object.__setattr__(self, "step_epochs", tuple(self.step_epochs))
        for field in ("epochs", "batch_size"):
            self._require(field, _is_count(getattr(self, field), 1), "a positive integer")
        self._require("patience", _is_count(self.patience, 0), "an integer, 0 or more")
        self._require(
            "seed", _is_count(self.seed, 0) and self.seed < 2**32, "an integer in [0, 2**32)"
        )
        self._require("lr", _is_number(self.lr) and self.lr > 0, "a positive number")
        for field in ("weight_decay", "warmup_epochs", "clip_norm", "focal_gamma"):
            value = getattr(self, field)
            self._require(field, _is_number(value) and value >= 0, "a number, 0 or more")
        self._require(
            "focal_gamma",
            self.loss == "focal" or self.focal_gamma == type(self).focal_gamma,
            f"left alone unless train.loss is 'focal', and that is {self.loss!r}",
        )
        self._require(
            "warmup_epochs", self.warmup_epochs <= self.epochs, f"at most epochs = {self.epochs}"
        )
        self._require(
            "label_smoothing",
            _is_number(self.label_smoothing) and 0 <= self.label_smoothing < 1,
            "in [0, 1)",
        )
        self._require(
            "step_factor", _is_number(self.step_factor) and self.step_factor > 0, "positive"
        )
        self._require(
            "step_epochs", all(_is_count(x, 1) for x in self.step_epochs), "positive integers"
        )
        choices = {
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "decay": DECAYED,
            "loss": LOSSES,
            "class_weights": WEIGHTS,
            "pos_weights": WEIGHTS,
            "sampler": SAMPLERS,
            "best_metric": ("auto", *BEST_METRICS),
        }
        for field, allowed in choices.items():
            self._require(field, getattr(self, field) in allowed, f"one of {allowed}")
        self._require(
            "label_smoothing",
            not self.label_smoothing or self.loss not in ("focal", "ordinal"),
            f"0 with train.loss = {self.loss!r}, which has none",
        )
        self._require(
            "class_weights",
            self.class_weights == "none" or self.sampler == "shuffle",
            "'none' with train.sampler = 'balanced', which evens the classes out already",
        )

    def _require(self, field: str, valid: bool, allowed: str) -> None:
        if not valid:
            raise ValueError(f"train.{field} must be {allowed}; got {getattr(self, field)!r}")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
