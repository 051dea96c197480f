"""The training loop: train, validate, log and save, epoch by epoch."""

import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from medmamba_jax.data import OwnData, train_batches
from medmamba_jax.data.reading.loading import BatchIterator, batch_larger_than_set
from medmamba_jax.data.reading.order import sampler_for
from medmamba_jax.data.texts import for_terminal
from medmamba_jax.errors import NonFiniteLossError
from medmamba_jax.evaluation import evaluate
from medmamba_jax.metrics import metrics_of
from medmamba_jax.parallel import as_on_first_host, is_first_host, say
from medmamba_jax.report import report_after
from medmamba_jax.runs import Run
from medmamba_jax.runs.run import has_results
from medmamba_jax.training.config import Config, TrainConfig
from medmamba_jax.training.device_set import DeviceBatches, DeviceSet
from medmamba_jax.training.health import copied, update_ratios, warning_of_spike, with_spike
from medmamba_jax.training.nonfinite import REMEDY
from medmamba_jax.training.outputs import EpochOutputs
from medmamba_jax.training.placing import on_host
from medmamba_jax.training.reporting import MetricWriter, UnpredictedClasses, epoch_line
from medmamba_jax.training.selection import advance, warning_of_ties
from medmamba_jax.training.start import TrainingRun, start_run
from medmamba_jax.training.stopping import SAVE, Signals, Stopped, Watch


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
    config = run.config.train
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
            run.compile()
            with Signals() as signals:
                run_epochs(run, batches, writer, Watch(signals, config.checkpoint_minutes))
                run.store.wait()  # here, so that no signal loses the last checkpoint
        if run.progress.epoch < config.epochs:
            say(
                f"stopped early: no better checkpoint by val {run.description.best_metric} for"
                f" {config.patience} epochs (train.patience), since epoch {run.progress.best_epoch}"
            )
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


def run_epochs(
    run: TrainingRun, batches: Iterator[dict[str, Any]], writer: MetricWriter, watch: Watch
) -> None:
    """Trains until the last epoch or early stopping; saves a checkpoint after each epoch.

    Raises:
        Stopped: a signal asks for it. A checkpoint holds everything so far.
        Otherwise as `fit`.
    """
    config, metric, task = run.config.train, run.description.best_metric, run.dataset.task
    unpredicted = UnpredictedClasses(advice_on_classes(config, task))
    while not run.is_finished:
        row, validation = run_epoch(run, batches, watch)
        writer.write(row)
        run.progress = with_spike(advance(run.progress, metric, validation), writer.rows)
        run.store.save(run.progress, run.state.to_parts())
        watch.saved()
        is_best = " | best" if run.progress.best_epoch == run.progress.epoch else ""
        say(epoch_line(row, task, config.epochs, metric) + is_best)
        for warning in (
            unpredicted.warning(validation["per_class"]),
            warning_of_ties(writer.rows, metric, run.progress),
            warning_of_spike(run.progress, writer.rows),
        ):
            if warning:
                say(warning)
        if watch.asked:
            stop(run, watch.asked, f"after epoch {run.progress.epoch}")


def stop(run: TrainingRun, name: str, when: str) -> NoReturn:
    """Stops a run whose last checkpoint is on its way to the disk, because of a signal."""
    run.store.wait()
    if is_first_host():
        line = f"stopped by {name} {when}; the same command continues the run in {run.workdir}"
        print(for_terminal(line), file=sys.stderr, flush=True)
    raise Stopped(name)


def batches_of(run: TrainingRun) -> BatchIterator | DeviceBatches:
    """Returns the batches from the next epoch's first step on, as an iterator without end.

    Batches are dictionaries of arrays: arrays of the host, or, if the training images live on the
    devices, global arrays there.
    """
    train, split = run.config.train, run.dataset.splits["train"]
    preprocessing = run.description.preprocessing
    start_step = run.progress.epoch * run.steps + run.progress.steps
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
    run: TrainingRun, batches: Iterator[dict[str, Any]], watch: Watch
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains for an epoch, or for the rest of one, which replaces `run.state`, and validates.

    Returns:
        A row for the log, and the results of the validation split.
    """
    epoch = run.progress.epoch + 1
    trained, others = train_epoch(run, batches, watch)
    try:
        validation = evaluate(
            run.predictor(), run.dataset.splits["val"], num_workers=run.config.data.num_workers
        )
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"validation after epoch {epoch}: {error}; {REMEDY}") from error
    row: dict[str, Any] = {"epoch": epoch, "step": epoch * run.steps}
    for split, found in (("train", trained), ("val", validation)):
        row |= {f"{split}/{name}": found[name] for name in metrics_of(run.dataset.task)}
    return row | others, validation


def train_epoch(
    run: TrainingRun, batches: Iterator[dict[str, Any]], watch: Watch
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Takes the steps of an epoch that are left, which replaces `run.state`.

    Returns:
        The metrics of the training outputs as they came, with the training loss in place of the
        plain cross-entropy; and, for the log, the mean gradient norm, the update ratios of the last
        step, and timings. Of these, `images_per_second` and `data_wait_share` are of the steps that
        this process took, without the first one, because it may compile.
    """
    outputs = EpochOutputs(run)
    taken = outputs.count
    bar = tqdm(
        total=run.steps,
        initial=taken,
        desc=f"epoch {run.progress.epoch + 1}",
        unit="step",
        leave=False,
        disable=None,
    )
    started = running = time.perf_counter()
    waited = 0.0
    with bar:
        for step in range(taken, run.steps):
            asked = time.perf_counter()
            batch = next(batches)
            # Waiting for data costs nothing while the device is still busy with the last step.
            if step > taken and outputs.is_ready():
                waited += time.perf_counter() - asked
            before = copied(run.state.params) if step == run.steps - 1 else None
            run.state, output = run.train_step(run.state, run.parallel.put_batch(batch))
            outputs.add(output)
            # One step behind the device, so that it need not wait for the host to check the loss.
            if step == taken:
                jax.block_until_ready(output)
                running = time.perf_counter()
            outputs.fetch(step)
            if before is not None:
                outputs.fetch(run.steps)
                outputs.ratios = jax.device_get(update_ratios(before, run.state.params))
            bar.update()
            run.store.check()
            if wanted := watch.after(run.progress.epoch * run.steps + step + 1):
                outputs.fetch(step + 1)
                outputs.save()
                watch.saved()
                if wanted != SAVE:
                    stop(run, wanted, f"after step {step + 1} of epoch {run.progress.epoch + 1}")
    seconds = time.perf_counter() - running
    images = (run.steps - taken - 1) * run.config.train.batch_size
    memory = jax.local_devices()[0].memory_stats() or {}  # a CPU reports nothing
    found, others = outputs.measured()
    return found, others | {
        "images_per_second": images / seconds if images > 0 else None,
        "data_wait_share": waited / seconds if images > 0 else None,
        "first_step_seconds": running - started,
        "peak_memory_bytes": memory.get("peak_bytes_in_use"),
    }


def advice_on_classes(config: TrainConfig, task: str) -> str:
    """Returns advice for a model that never predicts some class."""
    if task == "multilabel":
        if config.pos_weights == "none":
            return "train.pos_weights='balanced' in a new --workdir may help"
    elif config.class_weights == "none" and config.sampler == "shuffle":
        settings = "train.class_weights='balanced' or train.sampler='balanced'"
        return f"{settings} in a new --workdir may help"
    return "classes are weighted already: check these images and their labels, or train longer"
