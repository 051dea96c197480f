"""What a run prints, and the log of its epochs: `metrics.jsonl` and TensorBoard events."""

import collections
import importlib.metadata
import json
import pathlib
import platform
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from medmamba_jax.files import write_atomically
from medmamba_jax.metrics import METRICS, metrics_of
from medmamba_jax.parallel import is_first_host
from medmamba_jax.runs import Progress
from medmamba_jax.runs.log import METRICS_FILE, read_metrics
from medmamba_jax.training.selection import is_turn

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")


class MetricWriter:
    """Writes a row for each epoch into `metrics.jsonl`, and the same numbers for TensorBoard.

    The first host writes; the others keep the rows only. When a run continues, its first new row
    writes the events of all rows again. So no epoch is missing or there twice, wherever the process
    before was killed.

    Args:
        workdir: the run's folder.
        epoch: epochs already finished. Rows of later epochs are dropped: a run that stopped before
            their checkpoint was complete has left them, and those epochs run again.

    Attributes:
        rows: all rows so far, in order.
    """

    def __init__(self, workdir: pathlib.Path, epoch: int):
        self.rows = [row for row in read_metrics(workdir) if row["epoch"] <= epoch]
        self._path = workdir / METRICS_FILE
        self._events: EventsWriter | None = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, row: dict[str, Any]) -> None:
        """Writes a flat row with the key `epoch`; None becomes null and is no event."""
        self.rows.append(row)
        if not is_first_host():
            return
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
        if self._events is not None:
            _write_events(self._events, [row])
            return
        # Where PyTorch is installed, tensorboardX imports it, which takes seconds. So this import
        # waits until the first epoch has ended.
        from tensorboardX.event_file_writer import EventsWriter

        folder = self._path.parent / "tensorboard"
        folder.mkdir(exist_ok=True)
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        # This writer has no thread: an error, as on a full disk, reaches the caller.
        self._events = EventsWriter(str(folder / "events"))
        _write_events(self._events, self.rows)


def _write_events(events: "EventsWriter", rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as scalars; the step of each is its epoch."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    for row in rows:
        for name, value in row.items():
            if name != "epoch" and isinstance(value, (int, float)):
                summary = scalar(name, value)
                event = Event(wall_time=time.time(), step=row["epoch"], summary=summary)
                events.write_event(event)
    events.flush()


def versions() -> dict[str, str]:
    """Returns the versions and the device that a result depends on."""
    found = {"python": platform.python_version()}
    found |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    found["device"] = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    return found


def parameter_counts(params: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns lines (title, text) with the number of parameters of each part of the model."""

    def count(tree: Any) -> int:
        return sum(x.size for x in jax.tree.leaves(tree))

    rest = {name: part for name, part in params.items() if name not in ("stages", "merges", "head")}
    rows = {name: count(part) for name, part in rest.items()}
    for i, stage in params["stages"].items():
        rows[f"stage {i}"] = count(stage)
        if i in params.get("merges", {}):
            rows[f"merge {i}"] = count(params["merges"][i])
    rows |= {"head": count(params["head"]), "total": count(params)}
    titles = ["parameters", *[""] * (len(rows) - 1)]
    return [
        (title, f"{name:<14}{size:>12,}")
        for title, (name, size) in zip(titles, rows.items(), strict=True)
    ]


def as_text(lines: list[tuple[str, str]]) -> str:
    """Returns lines (title, text) as aligned text."""
    return "\n".join(f"{title:<12}{text}" for title, text in lines)


def epoch_line(row: Mapping[str, Any], task: str, epochs: int, best_metric: str) -> str:
    """Returns the line that a run prints after an epoch.

    Args:
        row: a row of `metrics.jsonl`.
        task: the data set's task.
        epochs: the run's last epoch.
        best_metric: the metric that chooses the best checkpoint; the line shows its value.
    """
    rows = metrics_of(task)
    shown = [name for name in rows if rows[name].in_headline or name == best_metric]
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
    for split in ("train", "val"):
        values = (
            f"{METRICS[name].heading} {rows[name].text(row[f'{split}/{name}'])}" for name in shown
        )
        parts.append(f"{split} {' '.join(values)}")
    if row["images_per_second"] is not None:
        parts.append(f"{row['images_per_second']:.0f} img/s")
        parts.append(f"data wait {row['data_wait_share']:.0%}")
    return " | ".join(parts)


def progress_text(progress: Progress, steps: int) -> str:
    """Returns the progress of a resumed run as text.

    Args:
        progress: where it stands.
        steps: the number of steps in an epoch.
    """
    after = f"after epoch {progress.epoch}"
    if progress.steps:
        after = f"in epoch {progress.epoch + 1}, after {progress.steps} of {steps} steps"
    if not progress.best_values:
        return after
    name, value = next(iter(progress.best_values.items()))
    best = f"{METRICS[name].heading} {METRICS[name].text(value)} in epoch {progress.best_epoch}"
    return f"{after}, best so far {best}"


class UnpredictedClasses:
    """Warns of classes that the model has not predicted for any validation image for some epochs.

    Args:
        advice: what may help.
    """

    def __init__(self, advice: str):
        self._epochs = collections.Counter[str]()
        self._advice = advice

    def warning(self, per_class: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Returns a line to print, or None.

        A class is named after 3 epochs in a row, and again whenever their number has doubled.

        Args:
            per_class: what `metrics.measure` says of each class of the validation split. A class
                that no image shows need not be predicted.
        """
        named = []
        for name, row in per_class.items():
            if row["num_predicted"] or not row["num_examples"]:
                self._epochs[name] = 0
                continue
            self._epochs[name] += 1
            if is_turn(self._epochs[name]):
                shown = f"{row['num_examples']} validation images show it"
                named.append(f"{name!r} for {self._epochs[name]} epochs ({shown})")
        if not named:
            return None
        return f"warning: the model has not predicted {', '.join(named)}; {self._advice}"
