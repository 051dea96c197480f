"""The training loop: prepare, then train, validate, log and save, epoch by epoch."""

import dataclasses
import functools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from medmamba_jax.checkpoints import CheckpointStore, Progress, RunDescription
from medmamba_jax.checkpoints.description import CHECKPOINTS
from medmamba_jax.data import (
    Dataset,
    Preprocessing,
    build_dataset,
    steps_per_epoch,
    train_batches,
)
from medmamba_jax.ops.selective_scan import choose
from medmamba_jax.train import reporting
from medmamba_jax.train.config import BEST_METRICS
from medmamba_jax.train.evaluation import evaluate_split, results_table, write_results
from medmamba_jax.train.experiment import Experiment
from medmamba_jax.train.losses import balanced_class_weights, cross_entropy
from medmamba_jax.train.metrics import classification_metrics
from medmamba_jax.train.optimizer import make_optimizer
from medmamba_jax.train.sharding import DataParallel
from medmamba_jax.train.step import (
    StepSpec,
    TrainState,
    eval_step,
    graphdefs,
    init_state,
    train_step,
)

# Settings that may change between one start of a run and the next.
RESUMABLE = {
    "train": ("epochs", "patience"),
    "data": ("root", "manual_dir", "num_workers", "allow_unreadable"),
}


class NonFiniteLossError(ArithmeticError):
    """The training loss became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What an experiment comes to on these images and these devices; nothing is compiled yet.

    Attributes:
        experiment: the configuration.
        dataset: the images.
        description: what is saved beside the weights.
        parallel: how a batch is spread over devices.
        spec: what the steps need besides arrays.
        steps: training steps in an epoch.
        train_step, eval_step: the jitted steps.
    """

    experiment: Experiment
    dataset: Dataset
    description: RunDescription
    parallel: DataParallel
    spec: StepSpec
    steps: int
    train_step: Any
    eval_step: Any

    def evaluate(self, state: TrainState, split: str) -> dict[str, Any]:
        """Returns the metrics of a split."""
        return evaluate_split(
            self.eval_step,
            state.params,
            state.variables,
            self.dataset.splits[split],
            preprocessing=self.description.preprocessing,
            parallel=self.parallel,
            batch_size=self.experiment.train.batch_size,
            num_workers=self.experiment.data.num_workers,
            class_names=self.dataset.class_names,
        )


def train(
    experiment: Experiment, workdir: str | pathlib.Path, data: Dataset | None = None
) -> dict[str, dict[str, Any]]:
    """Trains until the last epoch or early stopping, then evaluates the best checkpoint.

    A workdir that holds a run of the same experiment is continued where it stopped.

    Args:
        experiment: the configuration.
        workdir: folder of the run, created if it does not exist.
        data: images to use in place of those that `experiment.data` names.

    Returns:
        split ("val", "test") -> `classification_metrics` of the best checkpoint, which are also
        in `results/<split>.json`.

    Raises:
        ValueError: if the experiment, the images and the devices do not fit together, or the
            workdir holds another experiment.
        DataUnavailableError, FileNotFoundError: if there are no images.
        NonFiniteLossError: if the loss becomes NaN or infinite; the last checkpoint is intact.
    """
    workdir = pathlib.Path(workdir).resolve()
    setup = prepare(experiment, data if data is not None else build_dataset(experiment.data))
    claim(workdir, setup.description)
    with CheckpointStore(workdir / CHECKPOINTS) as store:
        state, progress = start_or_resume(setup, store)
        print(plan(setup, state, progress, workdir), flush=True)
        with (
            reporting.MetricWriter(workdir, progress.epoch) as writer,
            training_batches(setup, start_epoch=progress.epoch) as batches,
            jax.transfer_guard("disallow"),
        ):
            while not finished(experiment, progress):
                state, progress, row = run_epoch(setup, state, progress, batches)
                writer.write(row)
                store.save(progress, state.to_parts())
                improved = progress.best_epoch == progress.epoch
                print(reporting.epoch_line(row, experiment.train.epochs, improved), flush=True)
    return evaluate(workdir, data=setup.dataset)


def evaluate(
    workdir: str | pathlib.Path, data: Dataset | None = None, root: str = ""
) -> dict[str, dict[str, Any]]:
    """Evaluates a run's best checkpoint; architecture, preprocessing and data are the run's own.

    Args:
        workdir: folder of the run.
        data: images to use in place of those that the run names.
        root: where the images lie now, if they moved.

    Returns, raises: as `train`.
    """
    workdir = pathlib.Path(workdir).resolve()
    description = RunDescription.read(workdir)
    experiment = Experiment.from_dict(description.experiment)
    if root:
        moved = dataclasses.replace(experiment.data, root=root)
        experiment = dataclasses.replace(experiment, data=moved)
    setup = prepare(experiment, data if data is not None else build_dataset(experiment.data))
    if setup.dataset.class_names != description.class_names:
        raise ValueError(
            f"the run was trained on the classes {description.class_names}, "
            f"the images have {setup.dataset.class_names}"
        )
    with CheckpointStore(workdir / CHECKPOINTS) as store:
        epoch = store.best_epoch()
        if epoch is None:
            raise FileNotFoundError(f"{workdir} has no checkpoint yet; train for one epoch first")
        state = restore(setup, store, epoch)[0]
    results = {}
    for split in ("val", "test"):
        metrics = setup.evaluate(state, split)
        metrics |= {
            "split": split,
            "epoch": epoch,
            "dataset": description.dataset,
            "synthetic": description.synthetic,
        }
        path = write_results(workdir, split, metrics)
        kind = " (synthetic images)" if description.synthetic else ""
        print(f"\n{split}{kind}, epoch {epoch}: {results_table(metrics)}\n  {path}", flush=True)
        results[split] = metrics
    return results


def prepare(experiment: Experiment, dataset: Dataset) -> Setup:
    """Checks that everything fits together and builds what the steps need."""
    options = experiment.train
    missing = [name for name in ("train", "val", "test") if name not in dataset.splits]
    if missing:
        raise ValueError(f"the data set {dataset.name!r} lacks the splits {missing}")
    if options.best_metric == "auc" and len(set(dataset.splits["val"].labels.tolist())) < 2:
        raise ValueError(
            "train.best_metric='auc' needs two classes in the validation split, which holds one; "
            "choose 'accuracy' or 'loss', or split the images otherwise"
        )
    model_config = experiment.model_config(len(dataset.class_names))
    description = RunDescription(
        experiment=experiment.to_dict(),
        model=model_config,
        preprocessing=Preprocessing.from_config(experiment.data, model_config.in_channels),
        class_names=dataset.class_names,
        dataset=dataset.name,
        synthetic=dataset.synthetic,
    )
    steps = steps_per_epoch(dataset.splits["train"], options.batch_size)
    parallel = DataParallel(options.batch_size)
    loss = functools.partial(cross_entropy, label_smoothing=options.label_smoothing)
    if options.class_weights == "balanced":
        labels = dataset.splits["train"].labels
        weights = balanced_class_weights(labels, len(dataset.class_names))
        loss = functools.partial(loss, class_weights=weights)
    training, evaluation = graphdefs(model_config)
    spec = StepSpec(
        graphdef=training,
        eval_graphdef=evaluation,
        optimizer=make_optimizer(options, steps),
        normalize=description.preprocessing.normalize,
        loss=loss,
    )
    return Setup(
        experiment=experiment,
        dataset=dataset,
        description=description,
        parallel=parallel,
        spec=spec,
        steps=steps,
        train_step=jax.jit(
            functools.partial(train_step, spec=spec),
            donate_argnums=0,
            out_shardings=parallel.replicated,
        ),
        eval_step=jax.jit(
            functools.partial(eval_step, spec=spec), out_shardings=parallel.replicated
        ),
    )


def claim(workdir: pathlib.Path, description: RunDescription) -> None:
    """Makes the workdir this run's: writes its description, or checks the one that is there.

    Raises:
        ValueError: if the workdir holds a run that differs in more than `RESUMABLE` settings.
    """
    try:
        old = RunDescription.read(workdir)
    except FileNotFoundError:
        workdir.mkdir(parents=True, exist_ok=True)
    else:
        differences = [
            f"{section}.{key} was {value!r} and is {description.experiment[section].get(key)!r}"
            for section, values in json.loads(json.dumps(old.experiment)).items()
            for key, value in values.items()
            if key not in RESUMABLE.get(section, ())
            and value != json.loads(json.dumps(description.experiment))[section].get(key)
        ]
        if old.class_names != description.class_names:
            differences.append(
                f"the classes were {old.class_names} and are {description.class_names}"
            )
        if differences:
            raise ValueError(
                f"{workdir} holds another run: {'; '.join(differences)}. "
                "Give another --workdir, or the settings it was started with"
            )
    description.write(workdir)
    (workdir / "config.json").write_text(json.dumps(description.experiment, indent=2) + "\n")
    (workdir / "versions.json").write_text(json.dumps(reporting.versions(), indent=2) + "\n")


def start_or_resume(setup: Setup, store: CheckpointStore) -> tuple[TrainState, Progress]:
    """Returns the state to go on from and how far it is."""
    epoch = store.latest_epoch()
    if epoch is not None:
        return restore(setup, store, epoch)
    seed = setup.experiment.train.seed
    state = init_state(setup.description.model, setup.spec.optimizer, seed)
    return setup.parallel.replicate(state), Progress(epoch=0, best_epoch=0, best_value=0.0)


def restore(setup: Setup, store: CheckpointStore, epoch: int) -> tuple[TrainState, Progress]:
    """Reads a checkpoint onto this run's devices."""
    make = functools.partial(
        init_state,
        setup.description.model,
        setup.spec.optimizer,
        setup.experiment.train.seed,
    )
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=setup.parallel.replicated),
        jax.eval_shape(make),
    )
    progress, parts = store.restore(epoch, like.to_parts())
    return TrainState.from_parts(parts), progress


def training_batches(setup: Setup, start_epoch: int):
    """Returns the iterator over training batches from the first step of an epoch on."""
    config = setup.experiment
    return train_batches(
        setup.dataset.splits["train"],
        setup.description.preprocessing,
        config.data.augmentation,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        start_step=start_epoch * setup.steps,
        num_workers=config.data.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def finished(experiment: Experiment, progress: Progress) -> bool:
    """Whether the last epoch is reached, or `patience` epochs brought nothing better."""
    waited = progress.epoch - progress.best_epoch
    patience = experiment.train.patience
    return progress.epoch >= experiment.train.epochs or (0 < patience <= waited)


def run_epoch(
    setup: Setup, state: TrainState, progress: Progress, batches
) -> tuple[TrainState, Progress, dict[str, Any]]:
    """Trains for an epoch and validates; returns what is to be logged as the last."""
    epoch = progress.epoch + 1
    state, trained, timing = train_epoch(setup, state, epoch, batches)
    validated = setup.evaluate(state, "val")
    row = {"epoch": epoch, "step": epoch * setup.steps}
    for split, values in (("train", trained), ("val", validated)):
        row |= {f"{split}/{key}": values[key] for key in ("loss", *SUMMARY)}
    row |= timing

    metric = setup.experiment.train.best_metric
    value = validated[metric]
    better = value > progress.best_value if BEST_METRICS[metric] else value < progress.best_value
    if better or progress.best_epoch == 0:
        return state, Progress(epoch, epoch, value), row
    return state, dataclasses.replace(progress, epoch=epoch), row


SUMMARY = ("accuracy", "balanced_accuracy", "auc", "f1")


def train_epoch(
    setup: Setup, state: TrainState, epoch: int, batches
) -> tuple[TrainState, dict[str, Any], dict[str, float]]:
    """Takes every step of an epoch.

    Returns:
        The state, `classification_metrics` of the training logits as they came (with the training
        loss in place of the plain cross-entropy), and timings: `images_per_second` without the
        first step, which compiles, and `data_wait_share` of that time.
    """
    outputs: list[dict[str, Any]] = []
    waited = 0.0
    first_step = (epoch - 1) * setup.steps
    progress_bar = tqdm(
        total=setup.steps, desc=f"epoch {epoch}", unit="step", leave=False, disable=None
    )
    start = begun = time.perf_counter()
    with progress_bar:
        for step in range(setup.steps):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            state, output = setup.train_step(state, setup.parallel.put_batch(batch))
            outputs.append(output)
            # One step behind the device, so that it never waits for the host to look.
            if step:
                check(outputs, step - 1, first_step)
            else:
                jax.block_until_ready(output)
                begun, waited = time.perf_counter(), 0.0
            progress_bar.update()
        check(outputs, setup.steps - 1, first_step)
    seconds = time.perf_counter() - begun
    logits, labels = (
        np.concatenate([output[name] for output in outputs]) for name in ("logits", "label")
    )
    metrics = classification_metrics(labels, logits, setup.dataset.class_names)
    metrics["loss"] = float(np.mean([output["loss"] for output in outputs]))
    images = (setup.steps - 1) * setup.experiment.train.batch_size
    timing = {
        "grad_norm": float(np.mean([output["grad_norm"] for output in outputs])),
        "images_per_second": images / seconds,
        "data_wait_share": waited / seconds,
        "first_step_seconds": begun - start,
        "peak_memory_bytes": peak_memory(),
    }
    return state, metrics, timing


def check(outputs: list[dict[str, Any]], index: int, first_step: int) -> None:
    """Fetches a step's outputs in place and stops the run where its loss is not finite."""
    outputs[index] = jax.device_get(outputs[index])
    loss, norm = float(outputs[index]["loss"]), float(outputs[index]["grad_norm"])
    if not (np.isfinite(loss) and np.isfinite(norm)):
        raise NonFiniteLossError(
            f"step {first_step + index + 1}: loss {loss}, gradient norm {norm}; lower train.lr, "
            "or set train.clip_norm=1.0, and start again: the last checkpoint is intact"
        )


def peak_memory() -> int | None:
    """The most bytes in use so far on the first device; None where the backend does not tell."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def plan(setup: Setup, state: TrainState, progress: Progress, workdir: pathlib.Path) -> str:
    """Returns what is about to happen, as text."""
    config, dataset = setup.experiment, setup.dataset
    kind = "SYNTHETIC images" if dataset.synthetic else "images"
    counts = dataset.counts()
    height, width = setup.description.preprocessing.image_size
    lines = [
        reporting.parameter_table(state.params),
        f"model      {config.model['variant']}, {setup.description.model.compute_dtype}",
        f"device     {reporting.versions()['device']}, "
        f"scan {choose(setup.description.model.scan_implementation)!r}",
        f"data       {dataset.name}: {dataset.description}",
        f"{kind:<11}"
        + ", ".join(f"{len(dataset.splits[s])} {s}" for s in ("train", "val", "test"))
        + f", {height}x{width} px",
        *(
            f"  {split:<9}" + ", ".join(f"{name} {n}" for name, n in counts[split].items())
            for split in ("train", "val", "test")
        ),
        f"training   {config.train.epochs} epochs of {setup.steps} steps, "
        f"batch {config.train.batch_size}, best by val {config.train.best_metric}",
        f"workdir    {workdir}",
    ]
    if progress.epoch:
        lines.append(
            f"resuming   after epoch {progress.epoch}; best so far epoch {progress.best_epoch} "
            f"({config.train.best_metric} {progress.best_value:.4f})"
        )
    logging.info("resolved configuration: %s", setup.description.experiment)
    return "\n".join(lines)
