"""The training loop: train, validate, log and save, epoch by epoch."""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from medmamba_jax.data import OwnData, train_batches
from medmamba_jax.data.reading.loading import BatchIterator, batch_larger_than_set
from medmamba_jax.data.reading.order import sampler_for
from medmamba_jax.errors import NonFiniteLossError
from medmamba_jax.evaluation import evaluate
from medmamba_jax.metrics import Outputs, metrics_of, values
from medmamba_jax.parallel import as_on_first_host, say
from medmamba_jax.report import report_after
from medmamba_jax.runs import Run
from medmamba_jax.runs.run import has_results
from medmamba_jax.training.config import Config, TrainConfig
from medmamba_jax.training.device_set import DeviceBatches, DeviceSet
from medmamba_jax.training.placing import on_host
from medmamba_jax.training.reporting import MetricWriter, UnpredictedClasses, epoch_line
from medmamba_jax.training.selection import advance, warning_of_ties
from medmamba_jax.training.start import TrainingRun, start_run

REMEDY = "lower train.lr or set train.clip_norm=1.0 in a new --workdir"


def train(
    config: Config | ConfigDict,
    workdir: str | pathlib.Path,
    data: OwnData | None = None,
    resume: str = "latest",
) -> dict[str, dict[str, Any]]:
    """Trains until the last epoch or early stopping, then evaluates the best checkpoint.

    A workdir that holds a run of the same configuration is continued where it stopped.

    Args, raises: as `start_run` and `fit`, one after the other.

    Returns:
        As `fit`.
    """
    with start_run(config, workdir, data, resume) as run:
        return fit(run)


def fit(run: TrainingRun) -> dict[str, dict[str, Any]]:
    """Trains what `start_run` returned, then evaluates the best checkpoint.

    Returns:
        Split ("val" and, if there is one, "test") -> results, as `runs.Run.report` returns them.
        They are also in `results/<split>.json`.

    Raises:
        NonFiniteLossError: the loss or an output becomes NaN or infinite. Earlier checkpoints are
            intact.
        NotSavedError: a checkpoint could not be saved, as on a full disk. It is raised before the
            next step; earlier checkpoints are intact.
    """
    config, metric = run.config.train, run.description.best_metric
    unpredicted = UnpredictedClasses(advice_on_classes(config, run.dataset.task))
    with (
        MetricWriter(run.workdir, run.progress.epoch) as writer,
        batches_of(run) as batches,
        jax.transfer_guard("disallow"),
    ):
        if nothing_left := run.is_finished:
            say(
                f"nothing left to train after epoch {run.progress.epoch}, with"
                f" train.epochs={config.epochs} and train.patience={config.patience}"
            )
        else:
            say("compiling the training step, up to a minute on a CPU ...")
        while not run.is_finished:
            row, validation = run_epoch(run, batches)
            run.progress = advance(run.progress, metric, validation)
            writer.write(row)
            run.store.save(run.progress, run.state.to_parts())
            is_best = " | best" if run.progress.best_epoch == run.progress.epoch else ""
            say(epoch_line(row, run.dataset.task, config.epochs, metric) + is_best)
            for warning in (
                unpredicted.warning(validation["per_class"]),
                warning_of_ties(writer.rows, metric, run.progress),
            ):
                if warning:
                    say(warning)
        if run.progress.epoch < config.epochs:
            say(
                f"stopped early: no better checkpoint by val {metric} for {config.patience} epochs"
                f" (train.patience), since epoch {run.progress.best_epoch}"
            )
    run.store.wait()
    evaluated = Run(run.workdir, run.description)
    settings = run.config.results
    (written,) = as_on_first_host(
        [has_results(run.workdir, run.description, run.progress.best_epoch, settings)]
    )
    write = not (nothing_left and written)
    results = evaluated.report(run.dataset, run.config.data.num_workers, write=write)
    if write or settings.report:
        report_after(run.workdir, Config().to_dict(), wanted=settings.report, changed=write)
    return results


def batches_of(run: TrainingRun) -> BatchIterator | DeviceBatches:
    """Returns the batches from the next epoch's first step on, as an iterator without end.

    Batches are dictionaries of arrays: arrays of the host, or, if the training images live on the
    devices, global arrays there.
    """
    train, split = run.config.train, run.dataset.splits["train"]
    preprocessing, start_step = run.description.preprocessing, run.progress.epoch * run.steps
    if run.on_device and not run.is_finished:
        if warning := batch_larger_than_set(split, train.batch_size):
            logging.warning("%s", warning)
        order = sampler_for(train.sampler, split.task).order(split, train.seed)
        return DeviceSet(split, preprocessing, run.parallel).batches(
            order, batch_size=train.batch_size, steps=run.steps, start_step=start_step
        )
    data = on_host(run.config.data, run.description.augmented_on)
    return train_batches(
        split,
        preprocessing,
        data.augmentation,
        batch_size=train.batch_size,
        seed=train.seed,
        sampler=train.sampler,
        start_step=start_step,
        num_workers=data.num_workers,
        process_index=run.parallel.host,
        process_count=run.parallel.hosts,
    )


def run_epoch(
    run: TrainingRun, batches: Iterator[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains for an epoch, which replaces `run.state`, and validates.

    Returns:
        A row for the log, and the results of the validation split.
    """
    epoch = run.progress.epoch + 1
    trained, timing = train_epoch(run, epoch, batches)
    try:
        validation = evaluate(
            run.predictor(), run.dataset.splits["val"], num_workers=run.config.data.num_workers
        )
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"validation after epoch {epoch}: {error}; {REMEDY}") from error
    row: dict[str, Any] = {"epoch": epoch, "step": epoch * run.steps}
    for split, found in (("train", trained), ("val", validation)):
        row |= {f"{split}/{name}": found[name] for name in metrics_of(run.dataset.task)}
    return row | timing, validation


def train_epoch(
    run: TrainingRun, epoch: int, batches: Iterator[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Takes every step of an epoch, which replaces `run.state`.

    Returns:
        The metrics of the training outputs as they came, with the training loss in place of the
        plain cross-entropy; and timings, of which `images_per_second` and `data_wait_share` leave
        out the epoch's first step, because it may compile.
    """
    outputs: list[dict[str, Any]] = []
    first_step = (epoch - 1) * run.steps
    bar = tqdm(total=run.steps, desc=f"epoch {epoch}", unit="step", leave=False, disable=None)
    started = running = time.perf_counter()
    waited = 0.0
    with bar:
        for step in range(run.steps):
            asked = time.perf_counter()
            batch = next(batches)
            # Waiting for data costs nothing while the device is still busy with the last step.
            if step > 0 and outputs[-1]["loss"].is_ready():
                waited += time.perf_counter() - asked
            run.store.check()
            run.state, output = run.train_step(run.state, run.parallel.put_batch(batch))
            outputs.append(output)
            # One step behind the device, so that it need not wait for the host to check the loss.
            if step == 0:
                jax.block_until_ready(output)
                running = time.perf_counter()
            else:
                _fetch(outputs, step - 1, first_step)
            bar.update()
        _fetch(outputs, run.steps - 1, first_step)
    seconds = time.perf_counter() - running
    logits, labels = (
        np.concatenate([output[name] for output in outputs]) for name in ("logits", "label")
    )
    found = values(Outputs(run.dataset.task, run.dataset.class_names, labels, logits))
    found["loss"] = float(np.mean([output["loss"] for output in outputs]))
    images = (run.steps - 1) * run.config.train.batch_size
    memory = jax.local_devices()[0].memory_stats() or {}  # a CPU reports nothing
    timing = {
        "grad_norm": float(np.mean([output["grad_norm"] for output in outputs])),
        "images_per_second": images / seconds if images else None,
        "data_wait_share": waited / seconds if images else None,
        "first_step_seconds": running - started,
        "peak_memory_bytes": memory.get("peak_bytes_in_use"),
    }
    return found, timing


def _fetch(outputs: list[dict[str, Any]], index: int, first_step: int) -> None:
    """Copies a step's outputs to the host, in place. A loss that is not finite stops the run."""
    outputs[index] = jax.device_get(outputs[index])
    loss, norm = float(outputs[index]["loss"]), float(outputs[index]["grad_norm"])
    if not (np.isfinite(loss) and np.isfinite(norm)):
        raise NonFiniteLossError(
            f"step {first_step + index + 1}: loss {loss}, gradient norm {norm}; {REMEDY} (earlier"
            " checkpoints are intact)"
        )


def advice_on_classes(config: TrainConfig, task: str) -> str:
    """Returns advice for a model that never predicts some class."""
    if task == "multilabel":
        if config.pos_weights == "none":
            return "train.pos_weights='balanced' in a new --workdir may help"
    elif config.class_weights == "none" and config.sampler == "shuffle":
        settings = "train.class_weights='balanced' or train.sampler='balanced'"
        return f"{settings} in a new --workdir may help"
    return "classes are weighted already: check these images and their labels, or train longer"
