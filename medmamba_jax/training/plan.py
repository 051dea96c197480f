"""What is printed before the first step: parameters, device, images, steps."""

from typing import Any

import jax
import numpy as np

from medmamba_jax.data import Dataset
from medmamba_jax.runs import Progress
from medmamba_jax.training.reporting import versions
from medmamba_jax.training.setup import Setup
from medmamba_jax.training.step import TrainState

_SAMPLERS = {"shuffle": "shuffled", "balanced": "classes equally often"}


def plan(setup: Setup, state: TrainState, progress: Progress) -> str:
    """Returns what is about to happen, as text."""
    experiment, dataset, model = setup.experiment, setup.dataset, setup.description.model
    train, splits = experiment.train, tuple(dataset.splits)
    counts = dataset.counts()
    height, width = setup.description.preprocessing.image_size
    sizes = ", ".join(f"{len(dataset.splits[split])} {split}" for split in splits)
    left_out = len(dataset.splits["train"]) - setup.steps * train.batch_size
    lines = [
        ("parameters", _parameters(state.params)),
        ("model", f"{experiment.model['variant']}, {model.block}, {model.compute_dtype}"),
        ("device", f"{versions()['device']}, scan {_scans(setup.scans)}"),
        ("data", f"{dataset.name}: {dataset.description}"),
        ("images", f"{'SYNTHETIC, ' if dataset.synthetic else ''}{sizes}, {height}x{width} px"),
        *(
            ("", f"{split:<6}" + ", ".join(f"{name} {n}" for name, n in counts[split].items()))
            for split in splits
        ),
        *_patients(dataset),
        ("cache", setup.caches),
        (
            "training",
            f"{train.epochs} epochs of {setup.steps} steps, batch {train.batch_size}, "
            f"{_SAMPLERS[train.sampler]}"
            + (f", {left_out} images left out of each epoch, others each time" if left_out else ""),
        ),
        ("loss", setup.objective.loss_text),
        *_weights(dataset.splits["train"].weights),
        ("best by", f"val {setup.objective.best_text}"),
        ("workdir", str(setup.workdir)),
    ]
    if progress.epoch:
        metric = setup.description.best_metric
        best = f"{metric} {progress.best_value:.4f} in epoch {progress.best_epoch}"
        lines.append(("resuming", f"after epoch {progress.epoch}, best so far {best}"))
    return "\n".join(f"{title:<12}{text}" for title, text in lines)


def _weights(weights: np.ndarray | None) -> list[tuple[str, str]]:
    if weights is None:
        return []
    return [("weights", f"of images, in training: {weights.min():g}..{weights.max():g}")]


def _patients(dataset: Dataset) -> list[tuple[str, str]]:
    if dataset.synthetic or dataset.splits["train"].groups is not None:
        return []
    return [("patients", "not named: whether one is in two splits was not checked")]


def _scans(names: tuple[str, ...]) -> str:
    return repr(names[0]) if len(set(names)) == 1 else f"{', '.join(names)} (by stage)"


def _parameters(params: dict[str, Any]) -> str:
    """The number of parameters of each part of the model, one a line, and of all."""

    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    rows = {"patch_embed": count(params["patch_embed"])}
    for i, stage in params["stages"].items():
        rows[f"stage {i}"] = count(stage)
        if i in params["merges"]:
            rows[f"merge {i}"] = count(params["merges"][i])
    rows["head"] = count(params["head"])
    rows["total"] = count(params)
    return f"\n{'':<12}".join(f"{name:<14}{size:>12,}" for name, size in rows.items())
