"""Chooses the checkpoint that a run goes on from."""

import dataclasses
import json
import pathlib

from absl import logging

from medmamba_jax.errors import UserError
from medmamba_jax.hosts import text_of_first_host
from medmamba_jax.parallel import on_first_host
from medmamba_jax.runs import CheckpointStore, Progress
from medmamba_jax.runs.log import read_metrics
from medmamba_jax.runs.store import Position

_MOST_BYTES = 2**14  # of a progress as JSON, which lists the epochs that stay


def progress_to_resume(
    resume: str, store: CheckpointStore, workdir: pathlib.Path, epochs: int
) -> Progress:
    """Returns the progress to go on with, whose best checkpoint can be used.

    The first host decides for all, because on a shared file system another host may see an older
    state of the folder.

    Args:
        resume: "latest", "previous", or the name of a checkpoint.
        store: the checkpoints.
        workdir: the run's folder.
        epochs: the run's last epoch.

    Returns:
        `Progress()` where the run begins anew.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or the best checkpoint cannot be used
            and no epoch is left to train.
    """
    found = [Progress()]

    def decide() -> None:
        position = store.named(resume)
        if resume == "latest" and (lost := store.lost()) is not None:
            further = "begins anew" if position is None else f"goes on from checkpoint {position}"
            logging.warning(
                "the latest checkpoint, %s, is gone from %s: the run %s",
                lost,
                store.directory,
                further,
            )
        if position is not None:
            store.require_sound(position)
            found[0] = with_best(store.progress(position), store, workdir, epochs)

    on_first_host(decide)
    text = text_of_first_host(json.dumps(dataclasses.asdict(found[0])), _MOST_BYTES)
    return Progress.from_dict(json.loads(text))


def with_best(
    progress: Progress, store: CheckpointStore, workdir: pathlib.Path, epochs: int
) -> Progress:
    """Returns the progress to go on with, whose best checkpoint can be used.

    If the best checkpoint is gone or damaged, the one that the run goes on from counts as the best,
    and a warning says so. Otherwise nobody would notice before the run ends.

    Args:
        progress: that of the checkpoint that the run goes on from.
        store: the checkpoints.
        workdir: the run's folder. `metrics.jsonl` has the validation metrics of that epoch.
        epochs: the run's last epoch.

    Raises:
        UserError: the best checkpoint cannot be used, and no epoch is left to train.
    """
    best = Position(progress.best_epoch)
    if not progress.best_epoch or best == progress.position:
        return progress
    problem = "is gone"
    if best in store.positions():
        found = store.damage(best)
        if not found:
            return progress
        problem = f"is damaged ({found})"
    if progress.epoch >= epochs:
        raise UserError(
            f"the best checkpoint in {store.directory}, of epoch {progress.best_epoch}, {problem},"
            " and no epoch is left to train: restore it from a copy, go on from an earlier"
            " checkpoint (--resume), or give another --workdir"
        )
    after_epoch = Position(progress.epoch)
    if after_epoch not in store.positions() or store.damage(after_epoch):
        # The run goes on from inside an epoch. The end of this epoch will be the best.
        logging.warning("the best checkpoint, of epoch %d, %s", progress.best_epoch, problem)
        return dataclasses.replace(progress, best_epoch=0, best_values={}, best_before=0)
    row = next((row for row in read_metrics(workdir) if row["epoch"] == progress.epoch), {})
    logging.warning(
        "the best checkpoint, of epoch %d, %s: epoch %d, from which the run goes on, counts as the"
        " best until a later one is better",
        progress.best_epoch,
        problem,
        progress.epoch,
    )
    values = {name: row.get(f"val/{name}") for name in progress.best_values}
    return dataclasses.replace(
        progress, best_epoch=progress.epoch, best_values=values, best_before=0
    )
