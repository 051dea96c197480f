"""What the numbers of a run say of its health: how far parameters move, and spikes of the loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medmamba_jax.models.structure import by_name
from medmamba_jax.runs import Progress

# A training loss is a spike if it is larger than `_FACTOR` times the median of the epochs before,
# and larger than this median by `_DEVIATIONS` times their median absolute deviation. Of the epochs
# before, the last `_WINDOW` count, and there must be `_FEWEST`.
_FACTOR = 1.5
_DEVIATIONS = 6.0
_WINDOW = 5
_FEWEST = 3


def is_spike(losses: Sequence[float]) -> bool:
    """Whether the last of these training losses, one for each epoch, is a spike."""
    *before, last = losses[-1 - _WINDOW :]
    if len(before) < _FEWEST:
        return False
    median = float(np.median(before))
    deviation = float(np.median(np.abs(np.subtract(before, median))))
    return last > max(_FACTOR * median, median + _DEVIATIONS * deviation)


def with_spike(progress: Progress, rows: Sequence[Mapping[str, Any]]) -> Progress:
    """Returns the progress; if the epoch is a spike, it keeps the checkpoint before the epoch.

    Args:
        progress: the progress after the epoch, as `selection.advance` returns it.
        rows: the rows of `metrics.jsonl`, the last epoch included.
    """
    before = progress.epoch - 1
    kept = tuple(epoch for epoch in progress.kept if epoch != before)
    progress = dataclasses.replace(progress, kept=kept)
    return with_kept(progress, before) if is_spike(_losses(rows)) else progress


def with_kept(progress: Progress, epoch: int) -> Progress:
    """Returns a progress that keeps the checkpoint of an epoch, too."""
    if not epoch or epoch in progress.kept:
        return progress
    return dataclasses.replace(progress, kept=(*progress.kept, epoch))


def warning_of_spike(progress: Progress, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns a line to print if the last epoch is a spike; takes what `with_spike` takes."""
    losses = _losses(rows)
    if not is_spike(losses):
        return None
    *before, last = losses
    usual = float(np.median(before[-_WINDOW:]))
    return (
        f"warning: the training loss of epoch {progress.epoch} is {last:.4g}, a spike above"
        f" {usual:.4g}, the median of the epochs before; the checkpoint of epoch"
        f" {progress.epoch - 1} stays: --resume={progress.epoch - 1} goes back to it"
    )


def _losses(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["train/loss"] for row in rows if row.get("train/loss") is not None]


@jax.jit
def copied(params: Any) -> Any:
    """Returns a copy of parameters, which stays valid when a step donates them."""
    return jax.tree.map(jnp.copy, params)


def groups(params: Any) -> list[str]:
    """Returns the names of the groups of parameters: each stage and merge, and the other parts."""
    return list(dict.fromkeys(map(_group, by_name(params))))


@jax.jit
def update_ratios(before: Any, after: Any) -> jax.Array:
    """Returns how far a step moved the parameters: norm of the change / norm of the parameters.

    About 0.001 is usual. A ratio far above it says that the learning rate is too large.

    Args:
        before: the parameters before the step.
        after: those after it.

    Returns:
        float32 (1 + groups,): the ratio of all parameters, then that of each of `groups`. It is NaN
        where all parameters of a group are 0.
    """
    old, new = by_name(before), by_name(after)
    names = groups(before)
    squares = {name: (jnp.zeros(()), jnp.zeros(())) for name in names}
    for name, x in old.items():
        change, size = squares[_group(name)]
        moved = jnp.square(new[name] - x).sum()
        squares[_group(name)] = (change + moved, size + jnp.square(x).sum())
    table = jnp.asarray([squares[name] for name in names])
    table = jnp.concatenate([table.sum(0, keepdims=True), table])
    return jnp.sqrt(table[:, 0] / table[:, 1])


def ratios_row(params: Any, ratios: np.ndarray) -> dict[str, Any]:
    """Returns ratios by the names that they have in the log."""
    names = ["update_ratio", *(f"update_ratio/{name}" for name in groups(params))]
    return {
        name: float(ratio) if np.isfinite(ratio) else None
        for name, ratio in zip(names, ratios, strict=True)
    }


def _group(name: str) -> str:
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first
