"""Reads and writes the checkpoints of a run. Each holds all that the run needs to continue."""

import contextlib
import dataclasses
import json
import logging as standard_logging
import math
import pathlib
import re
import shutil
import uuid
from collections.abc import Mapping
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
from absl import logging

from medmamba_jax.errors import NotSavedError, UserError
from medmamba_jax.files import write_atomically
from medmamba_jax.parallel import is_first_host, on_first_host
from medmamba_jax.runs.digests import damage, has_digests, write_digests

_REMOVED = ".removed"  # how the name of a checkpoint begins while its files are removed
_PARTIAL = ".orbax-checkpoint-tmp"  # a part of the names of folders that Orbax has not finished
_LATEST = "LATEST"  # the file that names the latest checkpoint, so that its loss is noticed
_ROOM = 1 << 20  # bytes for the files beside the arrays


@dataclasses.dataclass(frozen=True, order=True)
class Position:
    """Where in the training a checkpoint was saved.

    Attributes:
        epoch: epochs finished.
        steps: steps taken in the epoch that has begun.
    """

    epoch: int
    steps: int = 0

    def __str__(self) -> str:
        """The name of the checkpoint's folder: `3`, or `3-120` inside an epoch."""
        return f"{self.epoch}-{self.steps}" if self.steps else str(self.epoch)

    @classmethod
    def of_name(cls, name: str) -> "Position | None":
        """Returns the position that a folder's name means; None for other folders."""
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", name, re.ASCII)
        return found and cls(int(found[1]), int(found[2] or 0))


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs finished.
        best_epoch: the best epoch so far; the first of equals. 0 before the first epoch.
        best_values: its validation metrics: the one that chooses the best checkpoint, then the
            tie-breakers.
        best_before: the epoch that was the best before this one; 0 if there was none.
        steps: steps taken in the epoch that has begun.
        kept: epochs whose checkpoints stay, whatever else is saved.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_values: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    best_before: int = 0
    steps: int = 0
    kept: tuple[int, ...] = ()

    @property
    def position(self) -> Position:
        """The position of the checkpoint that holds this progress."""
        return Position(self.epoch, self.steps)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Progress":
        """Returns what JSON keeps of a progress. Keys of other versions are left out.

        Format 1 had another key for the value, which is not needed to use the run.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        progress = cls(**{key: values[key] for key in values if key in names})
        return dataclasses.replace(progress, kept=tuple(progress.kept))


class Checkpoints:
    """The checkpoints in a folder, to be read. A run may be training there.

    Everything that is read is first compared with the digests in the checkpoint.

    Args:
        directory: the folder.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory.resolve()

    def positions(self) -> list[Position]:
        """Returns the positions of all checkpoints, in the order of training."""
        names = [path.name for path in self.directory.glob("*") if path.is_dir()]
        return sorted(filter(None, map(Position.of_name, names)))

    def latest(self) -> Position | None:
        """Returns the position of the latest checkpoint, or None without a checkpoint."""
        return max(self.positions(), default=None)

    def best(self) -> Position | None:
        """Returns the position of the best checkpoint; None before the end of the first epoch.

        Raises:
            UserError: it is gone, or the latest checkpoint, which names it, is damaged.
        """
        lost, latest = self.lost(), self.latest()
        if lost is not None:
            further = "begins anew" if latest is None else f"goes on from checkpoint {latest}"
            raise UserError(
                f"the latest checkpoint, {lost}, which may be the best one, is gone from"
                f" {self.directory}: restore it from a copy; training {further}"
            )
        if latest is None:
            return None
        epoch = self.progress(latest).best_epoch
        if not epoch:
            return None
        if Position(epoch) not in self.positions():
            raise UserError(
                f"the best checkpoint, of epoch {epoch}, is gone from {self.directory}: restore it"
                f" from a copy; if the run has epochs left, train on from checkpoint {latest},"
                " which then counts as the best until a later one is better"
            )
        return Position(epoch)

    def lost(self) -> Position | None:
        """Returns the position of the latest checkpoint if it is gone; else None."""
        try:
            newest = Position.of_name((self.directory / _LATEST).read_text("utf-8").strip())
        except (OSError, ValueError):
            return None
        latest = self.latest()
        if newest is None or (latest is not None and newest <= latest):
            return None
        return newest

    def named(self, name: str) -> Position | None:
        """Returns the position that a user means.

        Args:
            name: "latest"; "previous", the newest sound one before the latest; or the name of a
                checkpoint.

        Returns:
            The position; None for "latest" if there is no checkpoint.

        Raises:
            UserError: there is no such checkpoint.
        """
        positions = self.positions()
        if name == "latest":
            return max(positions, default=None)
        if not positions:
            raise UserError(
                f"{self.directory} has no checkpoint, and so no {name!r}: leave out --resume to"
                " start the run, or give the --workdir of a run"
            )
        if name == "previous":
            for position in reversed(positions[:-1]):
                if not (found := self.damage(position)):
                    return position
                logging.warning("checkpoint %s is damaged: %s", position, found)
            if self.damage(positions[-1]):
                remedy = "restore one from a copy, or start again in a new --workdir"
            else:
                remedy = "leave out --resume to continue from the latest one"
            raise UserError(
                f"{self.directory} has no sound checkpoint before the latest one, {positions[-1]}:"
                f" {remedy}"
            )
        meant = Position.of_name(name)
        if meant is None or meant not in positions:
            raise UserError(
                f"no checkpoint {name!r}: give latest, previous or one of those in"
                f" {self.directory}, which has {', '.join(map(str, positions))}"
            )
        return meant

    def progress(self, position: Position) -> Progress:
        """Reads the progress that a checkpoint was saved with.

        Raises:
            FileNotFoundError: the checkpoint is gone.
            UserError: it is damaged.
        """
        self.require_sound(position, ["progress"])
        try:
            text = self._progress_file(position).read_text(encoding="utf-8")
            progress = Progress.from_dict(json.loads(text))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise self._damaged(position, f"progress: {type(error).__name__}") from error
        if progress.position != position:
            raise self._damaged(position, f"it was saved as {progress.position}")
        return progress

    def restore(self, position: Position, like: Mapping[str, Any]) -> dict[str, Any]:
        """Reads parts of a checkpoint.

        Args:
            position: the checkpoint's.
            like: the parts to read, as trees of `jax.ShapeDtypeStruct` that give shapes, dtypes
                and shardings. For NumPy arrays, NumPy arrays are read.

        Raises:
            UserError: the checkpoint is damaged, or a shape differs from its own.
        """
        self.require_sound(position, like)
        if not has_digests(self.directory / str(position)):
            logging.warning(
                "checkpoint %s in %s has no digests, because an earlier version saved it: its"
                " content cannot be checked",
                position,
                self.directory,
            )
        items = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
        handler = ocp.CompositeCheckpointHandler()
        try:
            with _quiet_orbax(), contextlib.closing(ocp.Checkpointer(handler)) as reader:
                restored = reader.restore(
                    self.directory / str(position), args=ocp.args.Composite(**items)
                )
            if missing := [name for name in items if restored[name] is None]:
                raise KeyError(missing[0])
        except (jax.errors.JaxRuntimeError, MemoryError):  # the device, not the checkpoint
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds
            reason = " ".join(str(error).split())[:200]
            raise self._damaged(position, f"{type(error).__name__}: {reason}") from error
        return {name: restored[name] for name in like}

    def damage(self, position: Position, parts: Any = None) -> str:
        """Returns what is damaged in a checkpoint, "" if nothing is known to be."""
        folder = self.directory / str(position)
        if not has_digests(folder):
            lacking = not self._progress_file(position).is_file()
            return "progress is missing" if lacking else ""
        return damage(folder, parts)

    def _progress_file(self, position: Position) -> pathlib.Path:
        return self.directory / str(position) / "progress" / "metadata"

    def require_sound(self, position: Position, parts: Any = None) -> None:
        """Raises UserError if these parts of a checkpoint are damaged; None means all parts."""
        if found := self.damage(position, parts):
            raise self._damaged(position, found)

    def _damaged(self, position: Position, reason: str) -> UserError:
        """Returns an error that names the damage, and a checkpoint to continue from."""
        positions = self.positions()
        sound = [p for p in positions if p != position and not self.damage(p)]
        advice = "no other checkpoint there is sound"
        if sound and sound[-1] > position:
            advice = f"checkpoint {sound[-1]} is sound, and training continues from it"
        elif sound:
            advice = (
                f"checkpoint {sound[-1]} is sound, and training with --resume=previous continues"
                " from it"
            )
        return UserError(
            f"checkpoint {position} in {self.directory} is damaged ({reason}): restore it from a"
            f" copy; {advice}"
        )


class CheckpointStore(Checkpoints):
    """The checkpoints of a run that trains; a context manager. All hosts open it together.

    It keeps these checkpoints: the latest; the best; the best before it, if the best is also the
    latest; those in `Progress.kept`; and that of every `keep_every`-th epoch. Saving is
    asynchronous and atomic: if it is interrupted, it leaves no checkpoint behind, and the earlier
    ones stay.

    Args:
        directory: created if it does not exist. What an interrupted save has left there is removed.
        keep_every: see above; 0 keeps no further ones.
    """

    def __init__(self, directory: pathlib.Path, *, keep_every: int = 0):
        super().__init__(directory)
        self._keep_every = keep_every
        self._saving: Progress | None = None
        on_first_host(lambda: self.directory.mkdir(parents=True, exist_ok=True))
        self._remove_leftovers()
        self._open = contextlib.ExitStack()
        self._open.enter_context(_quiet_orbax())  # its threads log as well
        self._writer = ocp.AsyncCheckpointer(_WithDigests())
        self._open.callback(self._writer.close)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything is saved, and ends; raises as `wait`."""
        with self._open:
            self.wait()

    def wait(self) -> None:
        """Waits until everything is saved.

        Raises:
            NotSavedError: a checkpoint could not be saved.
        """
        with self._noticing_failure():
            self._writer.wait_until_finished()
        self.check()

    def check(self) -> None:
        """Looks whether the current save has ended or failed, without a wait; raises as `wait`."""
        if self._saving is None:
            return
        if (self.directory / str(self._saving.position)).is_dir():
            self._remove_unneeded(self._saving)
            self._saving = None
            return
        with self._noticing_failure():
            self._writer.check_for_errors()

    def save(self, progress: Progress, parts: Mapping[str, Any]) -> None:
        """Starts saving; returns once the arrays may change again.

        If the save before is not complete, this waits for it first.

        Args:
            progress: where the run stands. It gives the checkpoint its name.
            parts: name -> tree of arrays. The first host writes NumPy arrays.

        Raises:
            NotSavedError: this checkpoint or the one before could not be saved; the earlier ones
                are intact.
        """
        self.wait()
        size = sum(map(_bytes_of, jax.tree.leaves(dict(parts))))
        on_first_host(lambda: self._require_room(progress.position, size))
        self._saving = progress
        with self._noticing_failure():
            self._writer.save(
                self.directory / str(progress.position),
                args=_Parts(
                    progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
                    **{name: ocp.args.StandardSave(tree) for name, tree in parts.items()},
                ),
            )

    def restore(self, position: Position, like: Mapping[str, Any]) -> dict[str, Any]:
        """Reads parts of a checkpoint, which may still be on its way to the disk."""
        self.wait()
        return super().restore(position, like)

    def remove_after(self, position: Position) -> None:
        """Removes the checkpoints after this one, from which the run goes on."""
        later = [other for other in self.positions() if other > position]
        if is_first_host() and (later or self.lost() is not None):
            write_atomically(self.directory / _LATEST, f"{position}\n")
            for other in later:
                self._remove(other)

    def _require_room(self, position: Position, size: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < size + _ROOM:
            raise NotSavedError(
                f"checkpoint {position} was not saved in {self.directory}: it needs up to"
                f" {size + _ROOM:,} bytes, and the disk has {free:,} free; earlier checkpoints are"
                " intact. Free some space; then the same command continues the run"
            )

    @contextlib.contextmanager
    def _noticing_failure(self) -> Any:
        """Turns any error of a save into NotSavedError, and removes the incomplete checkpoint."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            position = self._saving.position if self._saving else ""
            self._saving = None
            self._remove_leftovers()
            free = shutil.disk_usage(self.directory).free
            reason = " ".join(str(error).split())[:200]
            raise NotSavedError(
                f"checkpoint {position} was not saved in {self.directory}"
                f" ({type(error).__name__}: {reason}; the disk has {free:,} bytes free); earlier"
                " checkpoints are intact. Mend the cause; then the same command continues the run"
            ) from error

    def _remove_unneeded(self, progress: Progress) -> None:
        """Removes the checkpoints that need not stay, now that this progress has been saved."""
        latest, best = progress.position, Position(progress.best_epoch)
        kept = {latest, best, *map(Position, progress.kept)}
        if latest == best:
            kept.add(Position(progress.best_before))
        if not is_first_host():
            return
        write_atomically(self.directory / _LATEST, f"{latest}\n")
        for position in self.positions():
            due = self._keep_every and not position.steps and not position.epoch % self._keep_every
            if not due and position not in kept:
                self._remove(position)

    def _remove(self, position: Position) -> None:
        """Removes a checkpoint; a reader finds all of it or nothing."""
        hidden = self.directory / f"{_REMOVED}-{position}-{uuid.uuid4().hex}"
        (self.directory / str(position)).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Removes what an interrupted save or removal has left."""
        for path in self.directory.iterdir() if is_first_host() else ():
            if _PARTIAL in path.name or path.name.startswith(_REMOVED):
                shutil.rmtree(path, ignore_errors=True)


class _WithDigests(ocp.CompositeCheckpointHandler):
    """Orbax's handler. The thread that completes a checkpoint also writes its digests."""

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        write_digests(pathlib.Path(directory))


@ocp.args.register_with_handler(_WithDigests, for_save=True, for_restore=True)
class _Parts(ocp.args.Composite):
    """The parts of a checkpoint, which `_WithDigests` saves."""


def _bytes_of(x: Any) -> int:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, x)
    return int(math.prod(x.shape) * x.dtype.itemsize)


@contextlib.contextmanager
def _quiet_orbax() -> Any:
    """Keeps Orbax's errors out of the log. Orbax raises them, and would log tracebacks, too."""

    def is_ours(record: standard_logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = absl.logging.get_absl_logger()
    logger.addFilter(is_ours)
    try:
        yield
    finally:
        logger.removeFilter(is_ours)


def restored_like(abstract: Any, shardings: Any) -> Any:
    """Returns a tree for `Checkpoints.restore`, from shapes and shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract,
        shardings,
    )
