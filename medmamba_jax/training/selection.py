"""Checkpoint selection: which epoch's checkpoint is the best, and when training stops early."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmamba_jax.data import Dataset
from medmamba_jax.errors import UserError
from medmamba_jax.metrics import METRICS, Outputs, metrics_of
from medmamba_jax.runs import Progress

TIE_BREAKERS = ("auc", "loss")
_IMBALANCED = 3  # largest class / smallest class beyond which "auto" is balanced accuracy
_EPOCHS = 3  # epochs in a row without a change of the metric, before the first warning


def choose_best_metric(name: str, dataset: Dataset) -> tuple[str, str]:
    """Resolves `train.best_metric` for a data set.

    Returns:
        The metric's name and, where it was "auto", the reason for the choice.

    Raises:
        UserError: the metric is not for the data set's task, or the validation split cannot
            define it.
    """
    reason = ""
    if name == "auto":
        name, reason = _automatic(dataset)
    _check_defined(name, dataset)
    return name, reason


def _automatic(dataset: Dataset) -> tuple[str, str]:
    if dataset.task == "multilabel":  # each class is judged by itself
        return "auc", " (auto)"
    counts = dataset.counts()["train"].values()
    smallest, largest = min(counts), max(counts)
    sizes = f"{largest} images each"
    if smallest < largest:
        sizes = f"from {smallest} to {largest} images"
    reason = f" (auto, as training classes have {sizes})"
    return ("balanced_accuracy" if largest > _IMBALANCED * smallest else "auc"), reason


def _check_defined(name: str, dataset: Dataset) -> None:
    labels, task = dataset.splits["val"].labels, dataset.task
    allowed = list(metrics_of(task))
    if name not in allowed:
        raise UserError(
            f"train.best_metric={name!r} is not measured on {task} labels; choose one of {allowed}"
        )
    if len(dataset.class_names) < METRICS[name].fewest_classes:
        raise UserError(f"train.best_metric={name!r} needs three classes; choose 'accuracy'")
    if task == "multilabel" and np.isnan(labels).all():
        raise UserError("no label of split 'val' is known; label some of its images")
    if task == "multiclass":
        if METRICS[name].compares_classes and len(np.unique(labels)) < 2:
            raise UserError(
                f"train.best_metric={name!r} needs two classes in the validation split, which has"
                " images of one; choose 'accuracy' or 'loss', or split the images otherwise"
            )
    elif METRICS[name].needs_both_sides and not ((labels == 1).any(0) & (labels == 0).any(0)).any():
        raise UserError(
            f"train.best_metric={name!r} needs a class that some images of the validation split"
            " show and others do not; choose 'loss', or split the images otherwise"
        )
    else:
        right = Outputs(task, dataset.class_names, labels, np.where(labels == 1, 1.0, -1.0))
        # If even a model that is always right has no value, no epoch can have one.
        if METRICS[name].value(right) is None:
            raise UserError(
                f"train.best_metric={name!r} is not defined for the labels of the validation split,"
                " as sensitivity is not where no image shows a class; choose 'loss', or split the"
                " images otherwise"
            )


def advance(progress: Progress, metric: str, validation: Mapping[str, Any]) -> Progress:
    """Returns the progress after one more epoch.

    The epoch is the best so far if its validation metric is better than the best one, or equal to
    it and the first of `TIE_BREAKERS` that differs is better. A metric that is not defined is worse
    than any value.

    Args:
        progress: the progress before.
        metric: name of the metric that chooses the best checkpoint.
        validation: what `metrics.measure` returned for the validation split.
    """
    names = dict.fromkeys((metric, *TIE_BREAKERS))
    values = {name: validation[name] for name in names}
    progress = dataclasses.replace(progress, epoch=progress.epoch + 1, steps=0)
    if progress.best_epoch and _ranks(values) <= _ranks(progress.best_values):
        return progress
    return dataclasses.replace(
        progress,
        best_epoch=progress.epoch,
        best_values=values,
        best_before=progress.best_epoch,
    )


def _ranks(values: Mapping[str, float | None]) -> list[float]:
    """Metrics' values in order of importance, each the larger the better."""
    return [
        -np.inf if value is None else value if METRICS[name].higher_is_better else -value
        for name, value in values.items()
    ]


def is_finished(progress: Progress, epochs: int, patience: int) -> bool:
    """Whether the last epoch is reached, or `patience` epochs brought no better checkpoint."""
    if progress.epoch >= epochs:
        return True
    # A run whose best checkpoint is lost has none until the next epoch ends.
    return progress.best_epoch > 0 and 0 < patience <= progress.epoch - progress.best_epoch


def warning_of_ties(
    rows: Sequence[Mapping[str, Any]], metric: str, progress: Progress
) -> str | None:
    """Returns a line if the metric stays at its best value, so that the tie-breakers choose.

    The line is due after 3 epochs in a row, and again whenever their number has doubled.

    Args:
        rows: the rows of `metrics.jsonl`, the last epoch included.
        metric: name of the metric that chooses the best checkpoint.
        progress: the progress after the last epoch.
    """
    values = [row.get(f"val/{metric}") for row in rows]
    same = next((i for i, value in enumerate(reversed(values)) if value != values[-1]), len(values))
    if values[-1] != progress.best_values[metric] or not is_turn(same):
        return None
    deciders = ", then ".join(METRICS[name].heading for name in TIE_BREAKERS if name != metric)
    return (
        f"warning: val {METRICS[metric].heading} has been {METRICS[metric].text(values[-1])} for"
        f" {same} epochs; the tie-breaker chooses the best checkpoint among these ({deciders})"
    )


def is_turn(epochs: int) -> bool:
    """Whether a warning about so many epochs in a row is due: after 3, 6, 12, 24 and so on."""
    rounds, rest = divmod(epochs, _EPOCHS)
    return not rest and rounds.bit_count() == 1
