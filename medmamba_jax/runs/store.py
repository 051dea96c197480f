"""Orbax checkpoints of a run: the latest and the best, each with all that is needed to go on."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from medmamba_jax.errors import UserError

_RANK = "improved_in_epoch"
_TOGETHER = ocp.options.MultiprocessingOptions()
_ALONE = ocp.options.MultiprocessingOptions(
    active_processes={0}, barrier_sync_key_prefix="first_host"
)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after an epoch.

    Attributes:
        epoch: epochs finished.
        best_epoch: the best epoch so far; the first of equals. 0 before the first epoch.
        best_values: its validation metrics: the one that chooses the best checkpoint, then the
            tie-breakers.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_values: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


class CheckpointStore:
    """Keeps two checkpoints in a folder, the latest and the best; a context manager.

    A checkpoint is numbered by its epoch. It holds the progress and the parts of the training
    state, each of which can be read alone. Saving is asynchronous and atomic: if it is interrupted,
    it leaves no checkpoint behind, and the one before it stays.

    Args:
        directory: created if it does not exist, unless `read_only`.
        read_only: whether to change nothing in the folder. A run may be training there.
        of_first_host: whether only the first host opens the store. Otherwise all hosts do, and wait
            for each other.
    """

    def __init__(
        self, directory: pathlib.Path, *, read_only: bool = False, of_first_host: bool = False
    ):
        # A checkpoint is the best until a later one improves on it, so that "improved
        # last" ranks them: no comparison of floats or NaN, and the first of equals wins.
        policies = checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            best_fn=lambda metrics: metrics[_RANK],
            best_mode="max",
            multiprocessing_options=_ALONE if of_first_host else _TOGETHER,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(1),
                    policies.BestN(get_metric_fn=lambda metrics: metrics[_RANK], n=1),
                ]
            ),
        )
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything is saved, and ends."""
        self._manager.close()

    def wait(self) -> None:
        """Waits until everything is saved."""
        self._manager.wait_until_finished()

    def latest_epoch(self) -> int | None:
        """Returns the epoch of the newest checkpoint, or None without a checkpoint."""
        return self._manager.latest_step()

    def best_epoch(self) -> int | None:
        """Returns the epoch of the best checkpoint, or None without a checkpoint."""
        return self._manager.best_step()

    def save(self, progress: Progress, parts: Mapping[str, Any]) -> None:
        """Starts saving trees of arrays; returns once the arrays may change again."""
        improved = progress.best_epoch == progress.epoch
        self._manager.save(
            progress.epoch,
            args=ocp.args.Composite(
                progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
                **{name: ocp.args.StandardSave(tree) for name, tree in parts.items()},
            ),
            metrics={_RANK: progress.epoch if improved else 0},
        )

    def restore(self, epoch: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Reads parts of a checkpoint.

        Args:
            epoch: `latest_epoch()` or `best_epoch()`.
            like: the parts to read, as trees of `jax.ShapeDtypeStruct` that give shapes, dtypes
                and shardings.

        Raises:
            UserError: the checkpoint is damaged, or a shape differs from its own.
        """
        items = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
        restored = self._restore(epoch, items)
        return {name: restored[name] for name in like}

    def progress(self, epoch: int) -> Progress:
        """Reads the progress that a checkpoint was saved with; raises as `restore`."""
        return Progress(**self._restore(epoch, {"progress": ocp.args.JsonRestore()})["progress"])

    def _restore(self, epoch: int, items: Mapping[str, Any]) -> Mapping[str, Any]:
        """Reads items of a checkpoint, which may still be on its way to the disk."""
        self.wait()
        try:
            restored = self._manager.restore(epoch, args=ocp.args.Composite(**items))
            if missing := [name for name in items if restored[name] is None]:
                raise KeyError(missing[0])
            return restored
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"checkpoint {epoch} in {self._manager.directory} cannot be read"
                f" ({type(error).__name__}: {reason}): restore it from a copy, or delete its folder"
                " to go on from the other one"
            ) from error


def restored_like(abstract: Any, shardings: Any) -> Any:
    """Returns a tree for `CheckpointStore.restore`, from shapes and shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract,
        shardings,
    )
