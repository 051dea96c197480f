"""The training loop: train, validate, log and save, epoch by epoch."""

import contextlib
import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medmamba_jax.data import (
    OwnData,
    as_dataset,
    audit,
    build_dataset,
    train_batches,
    write_split_table,
)
from medmamba_jax.data.reading.caching import open_caches
from medmamba_jax.errors import NonFiniteLossError
from medmamba_jax.runs import CheckpointStore, Progress
from medmamba_jax.training.config import BEST_METRICS
from medmamba_jax.training.evaluation import evaluate_best, evaluate_split
from medmamba_jax.training.experiment import Experiment
from medmamba_jax.training.hosts import is_first, say
from medmamba_jax.training.metrics import LOGGED, METRICS
from medmamba_jax.training.plan import plan
from medmamba_jax.training.reporting import MetricWriter, epoch_line
from medmamba_jax.training.setup import Setup, prepare, start_or_resume
from medmamba_jax.training.step import TrainState
from medmamba_jax.training.unpredicted import UnpredictedClasses
from medmamba_jax.training.workdir import SPLIT_TABLE, checkpoint_dir, claim, hold_workdir


def train(
    experiment: Experiment | ConfigDict, workdir: str | pathlib.Path, data: OwnData | None = None
) -> dict[str, dict[str, Any]]:
    """Trains until the last epoch or early stopping, then evaluates the best checkpoint.

    A workdir that holds a run of the same experiment is continued where it stopped.

    Args:
        experiment: the configuration, also as a config file returns it.
        workdir: folder of the run, created if it does not exist.
        data: images to use in place of those that `experiment.data` names: a `Dataset`, or objects
            of your own, see `medmamba_jax.data.as_dataset`.

    Returns, raises:
        As `prepare_training` and `fit`, one after the other.
    """
    return fit(prepare_training(experiment, workdir, data))


def prepare_training(
    experiment: Experiment | ConfigDict, workdir: str | pathlib.Path, data: OwnData | None = None
) -> Setup:
    """Does what a caller's mistake can stop, and makes the workdir this run's; see `train`.

    Raises:
        ValueError: if the experiment, the images and the devices do not fit together, the images
            do not pass `audit`, the workdir holds another experiment, or another process is
            training there.
        DataUnavailableError, FileNotFoundError: if there are no images.
        NotImplementedError: if the scan asked for does not run on these devices.
        OSError: if a file cannot be read or written, such as a cache on a full disk.
    """
    if not isinstance(experiment, Experiment):
        experiment = Experiment.from_config_dict(experiment)
    workdir = pathlib.Path(workdir).resolve()
    settings = experiment.data
    dataset = build_dataset(settings) if data is None else as_dataset(data, settings)
    setup = prepare(experiment, workdir, dataset)
    audit(
        dataset,
        setup.description.preprocessing,
        settings,
        digests=setup.description.images_sha256,
        say=say,
    )
    with contextlib.ExitStack() as on_error:
        if lock := hold_workdir(workdir):
            on_error.callback(lock.close)
        with CheckpointStore(checkpoint_dir(workdir)) as store:
            claim(workdir, setup.description, started=store.latest_epoch() is not None)
        if is_first():
            write_split_table(workdir / SPLIT_TABLE, dataset)
        open_caches(setup.dataset.splits.values())  # large, so not before all else is right
        on_error.pop_all()
    return dataclasses.replace(setup, lock=lock)


def fit(setup: Setup) -> dict[str, dict[str, Any]]:
    """Trains what `prepare_training` returned; see `train`.

    Returns:
        split ("val" and, if there is one, "test") -> what `METRICS` report of the best checkpoint,
        which is also in `results/<split>.json`.

    Raises:
        NonFiniteLossError: if the loss becomes NaN or infinite; earlier checkpoints are intact.
    """
    with (
        contextlib.closing(setup.lock) if setup.lock else contextlib.nullcontext(),
        CheckpointStore(checkpoint_dir(setup.workdir)) as store,
    ):
        state, progress = start_or_resume(setup, store)
        say(plan(setup, state, progress))
        unpredicted = UnpredictedClasses(setup.experiment.train, setup.dataset.task)
        with (
            MetricWriter(setup.workdir, progress.epoch) as writer,
            _training_batches(setup, progress) as batches,
            jax.transfer_guard("disallow"),
        ):
            if _finished(setup.experiment, progress):
                say(f"nothing left to train after epoch {progress.epoch}")
            else:
                say("compiling the training step, up to a minute on a CPU ...")
            while not _finished(setup.experiment, progress):
                state, progress, row, validated = _run_epoch(setup, state, progress, batches)
                writer.write(row)
                store.save(progress, state.to_parts())
                best_by = setup.description.best_metric
                say(epoch_line(row, setup.experiment.train, progress, best_by))
                if warning := unpredicted.warning(validated["per_class"]):
                    say(warning)
            if progress.epoch < setup.experiment.train.epochs:
                say(
                    f"stopped: in {setup.experiment.train.patience} epochs, which is "
                    f"train.patience, val {setup.description.best_metric} got no better than in "
                    f"epoch {progress.best_epoch}"
                )
    return evaluate_best(setup)


def _training_batches(setup, progress):
    """The iterator over training batches from the next epoch's first step on."""
    config = setup.experiment
    return train_batches(
        setup.dataset.splits["train"],
        setup.description.preprocessing,
        config.data.augmentation,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        sampler=config.train.sampler,
        start_step=progress.epoch * setup.steps,
        num_workers=config.data.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _finished(experiment, progress):
    """Whether the last epoch is reached, or `patience` epochs brought nothing better."""
    waited = progress.epoch - progress.best_epoch
    patience = experiment.train.patience
    return progress.epoch >= experiment.train.epochs or (0 < patience <= waited)


def _run_epoch(
    setup: Setup, state: TrainState, progress: Progress, batches
) -> tuple[TrainState, Progress, dict[str, Any], dict[str, Any]]:
    """Trains for an epoch and validates; returns a row for the log and the validation, too."""
    epoch = progress.epoch + 1
    state, trained, timing = _train_epoch(setup, state, epoch, batches)
    validated = evaluate_split(setup, state, "val")
    row = {"epoch": epoch, "step": epoch * setup.steps}
    for split, values in (("train", trained), ("val", validated)):
        row |= {f"{split}/{key}": values[key] for key in LOGGED[setup.dataset.task]}
    row |= timing

    metric = setup.description.best_metric
    value, best = validated[metric], progress.best_value
    if progress.best_epoch == 0 or (value > best if BEST_METRICS[metric] else value < best):
        return state, Progress(epoch, best_epoch=epoch, best_value=value), row, validated
    return state, dataclasses.replace(progress, epoch=epoch), row, validated


def _train_epoch(
    setup: Setup, state: TrainState, epoch: int, batches
) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
    """Takes every step of an epoch.

    Returns:
        The state; what `METRICS` report of the training logits as they came, with the training
        loss in place of the plain cross-entropy; and timings, of which `images_per_second` and
        `data_wait_share` leave out the epoch's first step, because it may compile.
    """
    outputs: list[dict[str, Any]] = []
    first_step = (epoch - 1) * setup.steps
    bar = tqdm(total=setup.steps, desc=f"epoch {epoch}", unit="step", leave=False, disable=None)
    started = running = time.perf_counter()
    waited = 0.0
    with bar:
        for step in range(setup.steps):
            asked = time.perf_counter()
            batch = next(batches)
            # Waiting for data costs nothing while the device is still busy with the last step.
            if step > 0 and outputs[-1]["loss"].is_ready():
                waited += time.perf_counter() - asked
            state, output = setup.train_step(state, setup.parallel.put_batch(batch))
            outputs.append(output)
            # One step behind the device, so that it need not wait for the host to look.
            if step == 0:
                jax.block_until_ready(output)
                running = time.perf_counter()
            else:
                _fetch(outputs, step - 1, first_step)
            bar.update()
        _fetch(outputs, setup.steps - 1, first_step)
    seconds = time.perf_counter() - running
    logits, labels = (
        np.concatenate([output[name] for output in outputs]) for name in ("logits", "label")
    )
    metrics = METRICS[setup.dataset.task](labels, logits, setup.dataset.class_names)
    metrics["loss"] = float(np.mean([output["loss"] for output in outputs]))
    images = (setup.steps - 1) * setup.experiment.train.batch_size
    memory = jax.local_devices()[0].memory_stats() or {}  # a CPU tells nothing
    timing = {
        "grad_norm": float(np.mean([output["grad_norm"] for output in outputs])),
        "images_per_second": images / seconds if images else None,
        "data_wait_share": waited / seconds if images else None,
        "first_step_seconds": running - started,
        "peak_memory_bytes": memory.get("peak_bytes_in_use"),
    }
    return state, metrics, timing


def _fetch(outputs, index, first_step):
    """Brings a step's outputs to the host, in place; a loss that is not finite stops the run."""
    outputs[index] = jax.device_get(outputs[index])
    loss, norm = float(outputs[index]["loss"]), float(outputs[index]["grad_norm"])
    if not (np.isfinite(loss) and np.isfinite(norm)):
        raise NonFiniteLossError(
            f"step {first_step + index + 1}: loss {loss}, gradient norm {norm}; lower train.lr or "
            "set train.clip_norm=1.0 in a new --workdir (earlier checkpoints are intact)"
        )
