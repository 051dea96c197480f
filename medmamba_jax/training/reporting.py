"""What a run reports of each epoch: a line, `metrics.jsonl` and TensorBoard events."""

import importlib.metadata
import json
import pathlib
import platform
from typing import Any

import jax
from tensorboardX import SummaryWriter

from medmamba_jax.runs import Progress
from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.hosts import is_first

METRICS_FILE = "metrics.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")


class MetricWriter:
    """Appends one line an epoch to `metrics.jsonl` and writes the same numbers for TensorBoard.

    Of several hosts the first one does so, and the others write nothing.

    Args:
        workdir: of the run.
        epoch: epochs already finished. Lines of later epochs, left by a run that stopped before
            its checkpoint was complete, are taken out: those epochs are run again.
    """

    def __init__(self, workdir: pathlib.Path, epoch: int):
        self._events = None
        if not is_first():
            return
        self._path = workdir / METRICS_FILE
        kept = [row for row in read_metrics(workdir) if row["epoch"] <= epoch]
        self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=epoch + 1 if epoch else None
        )

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, row: dict[str, Any]) -> None:
        """Writes a flat row with the key `epoch`; None becomes null and is no event."""
        if self._events is None:
            return
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
    found["device"] = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    return found


def epoch_line(
    row: dict[str, Any], config: TrainConfig, progress: Progress, best_metric: str
) -> str:
    """Returns the line printed after an epoch; `best_metric` is in it, whichever it is."""
    parts = [f"epoch {row['epoch']:>{len(str(config.epochs))}}/{config.epochs}"]
    accuracy, name = "accuracy", "acc"
    if "val/label_accuracy" in row:
        accuracy, name = "label_accuracy", "label acc"
    for split in ("train", "val"):
        parts.append(
            f"{split} loss {row[f'{split}/loss']:.4f} {name} "
            f"{_text(row[f'{split}/{accuracy}'], '6.1%')} AUC {_text(row[f'{split}/auc'], '.3f')}"
        )
    if best_metric not in ("loss", accuracy, "auc"):
        parts[-1] += f" {best_metric} {_text(row[f'val/{best_metric}'], '.3f')}"
    if row["images_per_second"] is not None:
        parts.append(f"{row['images_per_second']:.0f} img/s")
        parts.append(f"data wait {row['data_wait_share']:.0%}")
    if progress.best_epoch == row["epoch"]:
        parts.append("best")
    return " | ".join(parts)


def _text(value: float | None, form: str) -> str:
    return "undefined" if value is None else format(value, form)
