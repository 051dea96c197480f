"""What a run minimises and what chooses its best checkpoint, given the labels at hand."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from medmamba_jax.data import Dataset
from medmamba_jax.data.labels import class_counts
from medmamba_jax.training import losses
from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.metrics import LOGGED

Loss = Callable[..., jax.Array]

# train.loss -> task of the data set -> function.
LOSSES: Mapping[str, Mapping[str, Callable[..., jax.Array]]] = {
    "cross_entropy": {"multiclass": losses.cross_entropy},
    "binary_cross_entropy": {"multilabel": losses.binary_cross_entropy},
    "focal": {"multiclass": losses.focal, "multilabel": losses.binary_focal},
    "ordinal": {"multiclass": losses.ordinal},
}
_AUTO_LOSS = {"multiclass": "cross_entropy", "multilabel": "binary_cross_entropy"}
_IMBALANCED = 3  # largest class / smallest class beyond which "auto" is balanced accuracy
_NEED_BOTH_SIDES = ("auc", "average_precision")


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss and the metric of the best checkpoint.

    Attributes:
        loss: (logits, labels, image_weights=None) -> scalar.
        loss_text: its name and settings.
        best_metric: name of a validation metric.
        best_text: that name, and why "auto" came to it.
    """

    loss: Loss
    loss_text: str
    best_metric: str
    best_text: str


def make_objective(options: TrainConfig, dataset: Dataset) -> Objective:
    """Resolves what `options` leaves to the data; weights are of the training split alone.

    Raises:
        ValueError: if a setting does not go with the data set's task, or cannot be met by its
            labels.
    """
    if dataset.task == "multilabel":
        for split in ("train", "val"):
            if np.isnan(dataset.splits[split].labels).all():
                raise ValueError(f"no label of split {split!r} is known; label some of its images")
    _check_sampler(options, dataset)
    loss, loss_text = _loss(options, dataset)
    metric, reason = _best_metric(options, dataset)
    _check_defined(metric, dataset)
    return Objective(loss, loss_text, metric, f"{metric}{reason}")


def _loss(options: TrainConfig, dataset: Dataset) -> tuple[Loss, str]:
    task, train = dataset.task, dataset.splits["train"]
    name = _AUTO_LOSS[task] if options.loss == "auto" else options.loss
    if task not in LOSSES[name]:
        fitting = [name for name, by_task in LOSSES.items() if task in by_task]
        raise ValueError(
            f"train.loss={name!r} is not for {task} labels, which {dataset.name!r} has; choose "
            f"one of {fitting}, or 'auto'"
        )
    settings, weights = {}, {}
    if name == "focal":
        settings["gamma"] = options.focal_gamma
    if options.label_smoothing:
        settings["label_smoothing"] = options.label_smoothing
    if options.class_weights == "balanced":
        if task == "multilabel":
            raise ValueError(
                "train.class_weights weighs images by their one class, which multi-label images "
                "do not have; use train.pos_weights"
            )
        num_classes = len(dataset.class_names)
        weights["class_weights"] = losses.balanced_class_weights(train.labels, num_classes)
    if options.pos_weights == "balanced":
        if task == "multiclass":
            raise ValueError(
                "train.pos_weights weighs the yes against the no of each class, which one label "
                "an image does not have; use train.class_weights"
            )
        weights["pos_weights"] = losses.balanced_pos_weights(train.labels)
    parts = [name, *(f"{key} {value:g}" for key, value in settings.items())]
    parts += [f"{key} {', '.join(f'{w:.3g}' for w in value)}" for key, value in weights.items()]
    return functools.partial(LOSSES[name][task], **settings, **weights), "; ".join(parts)


def _check_sampler(options: TrainConfig, dataset: Dataset) -> None:
    if options.sampler != "balanced":
        return
    if dataset.task == "multilabel":
        raise ValueError(
            "train.sampler='balanced' draws class by class, but multi-label images show any number "
            "of classes; use 'shuffle', and train.pos_weights='balanced'"
        )
    counts = dataset.counts()["train"]
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise ValueError(f"train.sampler='balanced': no training image of classes {empty}")


def _best_metric(options: TrainConfig, dataset: Dataset) -> tuple[str, str]:
    """Returns the metric and, where it was left to the data, a remark why."""
    if options.best_metric != "auto":
        return options.best_metric, ""
    if dataset.task == "multilabel":  # every class is a question of its own
        return "auc", " (auto)"
    counts = class_counts(dataset.splits["train"].labels, len(dataset.class_names))
    smallest, largest = int(counts.min()), int(counts.max())
    sizes = f" (auto, as training classes have from {smallest} to {largest} images)"
    return ("balanced_accuracy" if largest > _IMBALANCED * smallest else "auc"), sizes


def _check_defined(metric: str, dataset: Dataset) -> None:
    labels, task = dataset.splits["val"].labels, dataset.task
    if metric not in LOGGED[task]:
        raise ValueError(
            f"train.best_metric={metric!r} is not measured on {task} labels; choose one of "
            f"{LOGGED[task]}"
        )
    if task == "multiclass":
        if metric in _NEED_BOTH_SIDES and len(np.unique(labels)) < 2:
            raise ValueError(
                f"train.best_metric={metric!r} needs two classes in the validation split, which "
                "holds one; choose 'accuracy' or 'loss', or split the images otherwise"
            )
    elif metric not in ("loss", "label_accuracy", "subset_accuracy"):
        if not ((labels == 1).any(0) & (labels == 0).any(0)).any():
            raise ValueError(
                f"train.best_metric={metric!r} needs a class that some images of the validation "
                "split show and others do not; choose 'loss', or split the images otherwise"
            )
