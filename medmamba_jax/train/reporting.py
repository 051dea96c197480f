"""What a user sees and keeps of a run: the plan, a line an epoch, metrics.jsonl, TensorBoard."""

import importlib.metadata
import json
import pathlib
import platform
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")


class MetricWriter:
    """Appends one line an epoch to `metrics.jsonl` and writes the same numbers for TensorBoard.

    Args:
        workdir: of the run.
        epoch: epochs already finished. Lines of later epochs, left by a run that stopped before
            its checkpoint was complete, are taken out: those epochs are run again.
    """

    def __init__(self, workdir: pathlib.Path, epoch: int):
        self._path = workdir / METRICS_FILE
        kept = [row for row in read_metrics(workdir) if row["epoch"] <= epoch]
        self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=epoch + 1 if epoch else None
        )

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._events.close()

    def write(self, row: dict[str, Any]) -> None:
        """Writes a flat row with the key `epoch`; None becomes null and is no event."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self._events.add_scalar(name, value, row["epoch"])
        self._events.flush()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl`; a last line cut off by a crash is left out."""
    path = workdir / METRICS_FILE
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def versions() -> dict[str, str]:
    """Returns the versions and the device that a result depends on."""
    found = {"python": platform.python_version()}
    found |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    found["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return found


def parameter_table(params: dict[str, Any]) -> str:
    """Returns a table of the parameters of each part of the model."""

    def count(tree):
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))

    parts = {}
    for name, tree in params.items():
        numbered = name in ("stages", "merges")
        parts |= (
            {f"{name}.{i}": count(subtree) for i, subtree in tree.items()}
            if numbered
            else {name: count(tree)}
        )
    lines = [f"  {name:<14}{size:>12,}" for name, size in parts.items()]
    return "\n".join(["parameters", *lines, f"  {'total':<14}{count(params):>12,}"])


def epoch_line(row: dict[str, Any], epochs: int, improved: bool) -> str:
    """Returns the line printed after an epoch."""

    def percent(value):
        return "  -  " if value is None else f"{100 * value:5.1f}"

    def auc(value):
        return "  -  " if value is None else f"{value:.3f}"

    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
    for split in ("train", "val"):
        parts.append(
            f"{split} loss {row[f'{split}/loss']:.4f} acc {percent(row[f'{split}/accuracy'])} % "
            f"AUC {auc(row[f'{split}/auc'])}"
        )
    parts.append(f"{row['images_per_second']:.0f} img/s")
    parts.append(f"data wait {100 * row['data_wait_share']:.0f} %")
    return " | ".join(parts) + (" | best" if improved else "")
