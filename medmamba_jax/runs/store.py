"""Orbax checkpoints of a run: the latest and the best, each with all that is needed to go on."""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after an epoch.

    Attributes:
        epoch: epochs finished.
        best_epoch: the epoch with the best validation metric so far; the first of equals.
        best_value: that metric's value there.
    """

    epoch: int
    best_epoch: int
    best_value: float


class CheckpointStore:
    """Keeps two checkpoints in a folder, the latest and the best; a context manager.

    A checkpoint is numbered by its epoch and holds the parts of the training state, each of which
    can be read alone, and the progress. Saving is asynchronous and atomic: one that is interrupted
    leaves no checkpoint behind, and the one before it stays.

    Args:
        directory: created if it does not exist.
    """

    def __init__(self, directory: pathlib.Path):
        # A checkpoint is the best for as long as no later one improved on it, so that "improved
        # last" ranks them: no comparison of floats or NaN, and the first of equals wins.
        rank = "improved_in_epoch"
        policies = checkpoint_managers
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics[rank],
                best_mode="max",
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(1),
                        policies.BestN(get_metric_fn=lambda metrics: metrics[rank], n=1),
                    ]
                ),
            ),
        )

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    def latest_epoch(self) -> int | None:
        """The epoch of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def best_epoch(self) -> int | None:
        """The epoch of the best checkpoint, None where there is none."""
        return self._manager.best_step()

    def save(self, progress: Progress, parts: dict[str, Any]) -> None:
        """Starts saving trees of arrays; returns once the arrays may change again."""
        improved = progress.best_epoch == progress.epoch
        self._manager.save(
            progress.epoch,
            args=ocp.args.Composite(
                progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
                **{name: ocp.args.StandardSave(tree) for name, tree in parts.items()},
            ),
            metrics={"improved_in_epoch": progress.epoch if improved else 0},
        )

    def restore(self, epoch: int, like: dict[str, Any]) -> tuple[Progress, dict[str, Any]]:
        """Reads a checkpoint, or a part of it.

        Args:
            epoch: `latest_epoch()` or `best_epoch()`.
            like: the parts to read, as trees of arrays or `jax.ShapeDtypeStruct` that give
                shapes, dtypes and shardings.

        Raises:
            ValueError: if a shape differs from the checkpoint's.
        """
        self._manager.wait_until_finished()  # the checkpoint may still be on its way to the disk
        restored = self._manager.restore(
            epoch,
            args=ocp.args.Composite(
                progress=ocp.args.JsonRestore(),
                **{
                    name: ocp.args.StandardRestore(jax.tree.map(_abstract, tree))
                    for name, tree in like.items()
                },
            ),
        )
        return Progress(**restored["progress"]), {name: restored[name] for name in like}


def _abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
