"""Decides about steps whose loss or gradient is not finite, and writes them into a log."""

import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmamba_jax.data import LabelledImages
from medmamba_jax.data.reading.order import sampler_for
from medmamba_jax.errors import NonFiniteLossError
from medmamba_jax.files import write_atomically
from medmamba_jax.parallel import as_on_first_host, on_first_host
from medmamba_jax.runs.log import read_rows
from medmamba_jax.training.config import TrainConfig

FILE = "nonfinite.jsonl"
REMEDY = "lower train.lr or set train.clip_norm=1.0 in a new --workdir"


def is_finite(output: Mapping[str, Any]) -> bool:
    """Whether a step's loss and gradient norm are finite."""
    return bool(np.isfinite(output["loss"]) and np.isfinite(output["grad_norm"]))


def note_step(
    workdir: pathlib.Path,
    step: int,
    output: Mapping[str, Any],
    gradients: Mapping[str, float],
    images: Sequence[str],
    most: int,
) -> None:
    """Adds a row to `nonfinite.jsonl` for a step that was not finite. All hosts call it.

    Args:
        workdir: the run's folder. Rows of this step and of later ones are dropped, because the run
            has gone back to an earlier checkpoint.
        step: the step's number, counted from 1.
        output: what the step returned.
        gradients: name of a parameter -> norm of its gradient.
        images: the names of the images of the batch.
        most: how many such steps the run may skip.

    Raises:
        NonFiniteLossError: the run has skipped so many already.
    """
    bad = [name for name, norm in gradients.items() if not math.isfinite(norm)]
    name = bad[0] if bad else max(gradients, key=lambda name: gradients[name])
    loss, norm = float(output["loss"]), float(output["grad_norm"])
    path = workdir / FILE
    rows = [row for row in read_rows(path, "step") if row["step"] < step]
    (skipped,) = as_on_first_host([len(rows) < most])
    row = {
        "step": step,
        "skipped": skipped,
        "loss": _number(loss),
        "grad_norm": _number(norm),
        "largest_gradient": name,
        "its_norm": _number(gradients[name]),
        "not_finite": len(bad),
        "parameters": len(gradients),
        "images": list(images),
    }
    text = "".join(json.dumps(row) + "\n" for row in (*rows, row))
    on_first_host(functools.partial(write_atomically, path, text))
    if skipped:
        return
    spent = f", after {most} skipped steps (train.nonfinite)" if most else ""
    # The images of a step may be the cause, or a learning rate at which the parameters diverge.
    raise NonFiniteLossError(
        f"step {step}: loss {loss}, gradient norm {norm}, largest in {name}{spent}; {REMEDY}, or"
        f" continue this run with train.nonfinite=skip:{most + 10}"
        f" ({path} names the images; earlier checkpoints are intact)"
    )


def images_of_step(split: LabelledImages, train: TrainConfig, step: int) -> list[str]:
    """Returns the names of the images of a step's batch, on all hosts.

    Args:
        split: the training images.
        train: the sampler, the seed and the batch size.
        step: the step's number, counted from 1.
    """
    order = sampler_for(train.sampler, split.task).order(split, train.seed)
    rows = range((step - 1) * train.batch_size, step * train.batch_size)
    return [split.describe(order(row)) for row in rows]


def _number(value: float) -> float | str:
    """Returns a number that JSON can hold; "nan", "inf" and "-inf" as text."""
    return value if math.isfinite(value) else str(value)
