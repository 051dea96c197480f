"""Starts a run: makes every check, then the first state. Read `start_run` first."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from medmamba_jax.data import (
    Dataset,
    LabelledImages,
    OwnData,
    Preprocessing,
    audit,
    steps_per_epoch,
    write_split_table,
)
from medmamba_jax.data.auditing.duplicates import write_duplicates
from medmamba_jax.data.build import Ready, find, prepare
from medmamba_jax.data.reading.order import SAMPLERS, sampler_for
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import expanded, require_writable, write_atomically
from medmamba_jax.interop import check_readable
from medmamba_jax.models import MedMambaConfig, abstract_weights, training_graphdef
from medmamba_jax.models.scans import scans
from medmamba_jax.parallel import DataParallel, is_first_host, on_first_host, say
from medmamba_jax.predictor import Predictor, check_image_size, normalize
from medmamba_jax.runs import CheckpointStore, Position, Progress, RunDescription
from medmamba_jax.runs.description import DEVICE, FILE
from medmamba_jax.runs.store import restored_like
from medmamba_jax.runs.workdir import (
    CHECKPOINTS,
    DUPLICATES,
    SPLIT_TABLE,
    check_same_images,
    check_same_settings,
    hold_workdir,
    warn_of_trained_images,
    write_description,
)
from medmamba_jax.training.augmentation import DEVICE_POLICIES
from medmamba_jax.training.compilation import (
    cache_compiled_programs,
    compile_beside,
    compile_step,
)
from medmamba_jax.training.config import Config, TrainConfig
from medmamba_jax.training.device_set import require_room
from medmamba_jax.training.initial_weights import Report, initial_weights
from medmamba_jax.training.losses import training_loss
from medmamba_jax.training.optimizer import frozen_mask, is_frozen, make_optimizer
from medmamba_jax.training.placing import on_host, place_training
from medmamba_jax.training.reporting import as_text, parameter_counts, progress_text, versions
from medmamba_jax.training.resuming import progress_to_resume
from medmamba_jax.training.selection import choose_best_metric, is_finished
from medmamba_jax.training.step import StepSpec, TrainState, eval_params, init_state, train_step


@dataclasses.dataclass(eq=False)
class TrainingRun:
    """A run that is ready to train; a context manager that frees its folder.

    Attributes:
        config: the configuration.
        workdir: the run's folder.
        dataset: the images, with caches if `data.cache` allows them.
        on_device: whether the training images will live on the devices.
        description: the content of `run.json`.
        spec: the static arguments of a step.
        parallel: the devices.
        store: the checkpoints.
        state: the state before the next step.
        step: the step, traced and lowered; None if nothing is left to train.
        progress: the epochs finished.
        open_files: what `with` closes: the lock of the folder and the checkpoints.
    """

    config: Config
    workdir: pathlib.Path
    dataset: Dataset
    on_device: bool
    description: RunDescription
    spec: StepSpec
    parallel: DataParallel
    store: CheckpointStore
    state: TrainState
    step: jax.stages.Lowered | None
    progress: Progress
    open_files: contextlib.ExitStack

    @functools.cached_property
    def steps(self) -> int:
        """Training steps in an epoch."""
        return steps_per_epoch(self.dataset.splits["train"], self.config.train.batch_size)

    @functools.cached_property
    def train_step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
        """The compiled step; it donates the state."""
        if self.step is None:
            raise UserError("nothing is left to train, so this run has no step")
        if self.parallel.devices[0].platform != "cpu":
            # XLA times kernels there while it compiles, so nothing else may run.
            return compile_step(self.step)
        # On a CPU XLA leaves most of a second core idle. The run needs the program of the
        # validation after its first epoch.
        validate = functools.partial(self.predictor().compile_for, self.dataset.splits["val"])
        return compile_step(self.step, validate)

    def compile(self) -> None:
        """Compiles the step now, and not when it is first taken."""
        _ = self.train_step

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train."""
        return is_finished(self.progress, self.config.train.epochs, self.config.train.patience)

    def __enter__(self) -> "TrainingRun":
        return self

    def __exit__(self, *exception: object) -> None:
        self.open_files.close()

    def predictor(self) -> Predictor:
        """Returns the model as it is now. The next step makes its arrays invalid."""
        weights, batch_size = eval_params(self.state), self.config.train.batch_size
        if self.config.train.shard_state:
            weights = self.parallel.gathered(weights)
        return self.description.predictor(*weights, batch_size, self.parallel)


def start_run(
    config: Config | ConfigDict,
    workdir: str | pathlib.Path,
    data: OwnData | None = None,
    resume: str = "latest",
) -> TrainingRun:
    """Checks the configuration and the images, locks the folder, and prints the plan.

    The first state is that of one of the run's checkpoints; else of `train.init_from`; else random.

    Args:
        config: the configuration, also as a config file returns it.
        workdir: the run's folder; it is created if it does not exist.
        data: images in place of those that `config.data` names: a `Dataset`, or objects of your
            own, see `medmamba_jax.data.build.prepare`.
        resume: the checkpoint to continue from, as for `Checkpoints.named`. Later checkpoints are
            removed.

    Raises:
        DataUnavailableError, FileNotFoundError: there are no images.
        OSError: a file cannot be read or written, such as a cache on a full disk.
        UserError: the configuration, the images, the devices and the folder do not fit together, or
            the audit of the images failed.
    """
    config = Config.of(config).with_absolute_paths()
    workdir = expanded(workdir).resolve()
    require_writable(workdir)
    cache_compiled_programs()
    # A run with a checkpoint does not need the trained model. `first_state` checks the other runs.
    if config.train.init_from and not (workdir / FILE).exists():
        check_init_from(pathlib.Path(config.train.init_from))
    parallel = DataParallel.over_all_devices()
    check_batch_size(config.train, parallel)
    found = find(config.data, data)
    preprocessing = check_settings(config, found)
    with contextlib.ExitStack() as open_files:
        store, before = open_workdir(workdir, config, open_files)
        progress = progress_to_resume(resume, store, workdir, config.train.epochs)
        on_device, augmented_on = place_training(
            config.data, found, preprocessing, parallel, before
        )
        ready = prepare(  # it reads every image
            found, on_host(config.data, augmented_on), preprocessing, train_on_device=on_device
        )
        dataset = ready.dataset
        if on_device:
            require_room(dataset.splits["train"], preprocessing, parallel)
        description, best_text = describe(config, dataset, augmented_on)
        if before is not None:
            check_same_images(workdir, before, description, dataset)
        spec, loss_text = make_spec(config, dataset, description, parallel)
        audit(
            dataset,
            ready.images,
            ready.facts,
            ready.duplicates,
            config.data,
            made=ready.made,
            say=say,
        )
        if before is None and config.train.init_from:
            evaluated = {k: v for k, v in dataset.splits.items() if k != "train"}
            warn_of_trained_images(pathlib.Path(config.train.init_from), evaluated)
        example = batch_shapes(dataset, config.train.batch_size, preprocessing, parallel)
        state, step, report = first_state(
            config.train, description, spec, store, progress, parallel, example
        )
        if progress.position != Position(0):
            store.remove_after(progress.position)
        run = TrainingRun(
            config,
            workdir,
            dataset,
            on_device,
            description,
            spec,
            parallel,
            store,
            state,
            step,
            progress,
            open_files.pop_all(),
        )
    with contextlib.ExitStack() as unless_it_starts:
        unless_it_starts.enter_context(run)
        if not run.is_finished:
            on_first_host(functools.partial(write_records, run, ready, report))
        say(plan(run, {"cache": ready.cache, "loss": loss_text, "best by": best_text}))
        if report is not None:
            say(report.text())
        unless_it_starts.pop_all()
    return run


def check_batch_size(train: TrainConfig, parallel: DataParallel) -> None:
    """Raises UserError if a batch cannot be split over the devices and into its parts."""
    devices = len(parallel.devices)
    if train.batch_size % (devices * train.accumulate):
        parts = f" times train.accumulate = {train.accumulate}" if train.accumulate > 1 else ""
        raise UserError(
            f"train.batch_size = {train.batch_size} must be a multiple of the {devices}"
            f" devices{parts}"
        )


def check_settings(config: Config, found: Dataset | LabelledImages) -> Preprocessing:
    """Checks the settings against the names and labels of the images, before any image is read.

    Labelled images that are not split yet stand for each split. Once the images are split,
    `describe` and `make_spec` check again.

    Returns:
        How the images are to be decoded and resized.

    Raises:
        UserError: a setting does not fit the images or another setting.
    """
    train = config.train
    dataset = found if isinstance(found, Dataset) else Dataset({"train": found, "val": found})
    for name in ("train", "val"):
        if name not in dataset.splits:
            raise UserError(f"the data set {dataset.name!r} lacks the split {name!r}: add images")
    choose_best_metric(train.best_metric, dataset)
    sampler_for(train.sampler, dataset.task)
    training_loss(train, dataset)
    model = config.model.architecture(len(dataset.class_names))
    preprocessing = config.data.preprocessing(model.in_channels)
    check_image_size(model, preprocessing)
    if train.frozen:
        frozen_mask(abstract_weights(model)[0], train.frozen)
    return preprocessing


def describe(
    config: Config, dataset: Dataset, augmented_on: str = ""
) -> tuple[RunDescription, str]:
    """Returns the content of `run.json`, and the reason for the choice of the best metric.

    Args:
        config: the configuration.
        dataset: the images.
        augmented_on: as in `RunDescription`.

    Raises:
        UserError: the images do not fit the configuration.
    """
    best_metric, reason = choose_best_metric(config.train.best_metric, dataset)
    model = config.model.architecture(len(dataset.class_names))
    preprocessing = config.data.preprocessing(model.in_channels)
    description = RunDescription(
        config=config.to_dict(),
        model=model,
        preprocessing=preprocessing,
        class_names=dataset.class_names,
        task=dataset.task,
        best_metric=best_metric,
        dataset=dataset.name,
        split=dataset.split,
        images_sha256={name: split.digest() for name, split in dataset.splits.items()},
        synthetic=dataset.synthetic,
        averaged=config.train.ema_decay > 0,
        augmented_on=augmented_on,
    )
    return description, f"val {best_metric}{reason}"


def make_spec(
    config: Config, dataset: Dataset, description: RunDescription, parallel: DataParallel
) -> tuple[StepSpec, str]:
    """Returns the static arguments of a step, and the loss as text.

    Raises:
        UserError: a setting does not fit the task or the labels, or `train.freeze` the parameters.
    """
    sampler_for(config.train.sampler, dataset.task)
    loss, loss_text = training_loss(config.train, dataset)
    params, _ = abstract_weights(description.model)
    patterns, policy = config.train.frozen, config.data.augmentation
    steps = steps_per_epoch(dataset.splits["train"], config.train.batch_size)
    shared: dict[str, Any] = {"whole": parallel.whole} if config.train.shard_state else {}
    spec = StepSpec(
        graphdef=training_graphdef(
            description.model,
            lambda norm: all(is_frozen(f"{norm}.{name}", patterns) for name in ("scale", "bias")),
        ),
        optimizer=make_optimizer(config.train, steps, params),
        normalize=functools.partial(normalize, preprocessing=description.preprocessing),
        loss=loss,
        frozen=frozen_mask(params, patterns),
        ema_decay=config.train.ema_decay,
        augment=DEVICE_POLICIES[policy] if description.augmented_on == DEVICE else None,
        accumulate=config.train.accumulate,
        skip_nonfinite=config.train.most_skipped > 0,
        **shared,
    )
    return spec, loss_text


def open_workdir(
    workdir: pathlib.Path, config: Config, open_files: contextlib.ExitStack
) -> tuple[CheckpointStore, RunDescription | None]:
    """Locks the folder, opens its checkpoints, and checks that they are of these settings.

    Returns:
        The checkpoints, and the run that they are of; None if there are none.

    Raises:
        OSError: the folder cannot be written to.
        UserError: another process trains there, or the run there has other settings.
    """
    if not workdir.exists():
        open_files.callback(_remove_unused, workdir)
    on_first_host(lambda: open_files.callback(hold_workdir(workdir).close))
    store = open_files.enter_context(
        CheckpointStore(workdir / CHECKPOINTS, keep_every=config.train.keep_every)
    )
    if store.latest() is None:
        return store, None
    return store, check_same_settings(workdir, config.to_dict(), defaults=Config().to_dict())


def _remove_unused(workdir: pathlib.Path) -> None:
    """Removes the folder of a run that did not start."""
    if is_first_host() and not (workdir / FILE).exists():
        shutil.rmtree(workdir, ignore_errors=True)


def batch_shapes(
    dataset: Dataset, batch_size: int, preprocessing: Preprocessing, parallel: DataParallel
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings of the global batches that `train_step` takes."""
    split = dataset.splits["train"]
    classes = split.labels.shape[1:]  # empty unless the set is multi-label
    arrays = {
        "image": ((*preprocessing.image_size, preprocessing.channels), np.uint8),
        "label": (classes, np.float32 if classes else np.int32),
    }
    if split.weights is not None:
        arrays["weight"] = ((), np.float32)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=parallel.batch)
        for name, (shape, dtype) in arrays.items()
    }


def first_state(
    train: TrainConfig,
    description: RunDescription,
    spec: StepSpec,
    store: CheckpointStore,
    progress: Progress,
    parallel: DataParallel,
    batch: dict[str, jax.ShapeDtypeStruct],
) -> tuple[TrainState, jax.stages.Lowered | None, Report | None]:
    """Returns the state to go on from: resumed, else from `train.init_from`, else random.

    XLA needs time to compile the program that makes the first state. Meanwhile the step is traced.

    Returns:
        The state; the lowered step, or None if nothing is left to train; and what became of the
        tensors that `init_from` names.

    Raises:
        FileNotFoundError: `init_from` names nothing.
        UserError: the trained model is of another architecture.
    """
    make = functools.partial(
        init_state, description.model, spec.optimizer, average=description.averaged
    )
    seed = np.uint32(train.seed)
    shapes = jax.eval_shape(make, seed)
    shardings = parallel.of_state(shapes, sharded=train.shard_state)
    like = restored_like(shapes, shardings)
    # The step donates the state.
    step = jax.jit(
        functools.partial(train_step, spec=spec),
        donate_argnums=0,
        out_shardings=(shardings, parallel.replicated),
    )

    def lower_step() -> jax.stages.Lowered:
        say("tracing the training step, up to half a minute ...")
        return step.lower(like, batch)

    if progress.position != Position(0):
        placed = jax.device_put(seed, shardings.seed)
        parts = store.restore(progress.position, like.to_parts())
        finished = is_finished(progress, train.epochs, train.patience)
        return TrainState.from_parts(parts, placed), None if finished else lower_step(), None
    loaded: Mapping[str, np.ndarray] = {}
    report = None
    if train.init_from:
        loaded, report = initial_weights(train.init_from, shapes, description)
    # `jit` makes one compilation, which is quicker than hundreds of small ones, and XLA leaves out
    # the draws of the tensors that are loaded. The seed is an argument, so that runs with other
    # seeds share the compiled program.
    first = jax.jit(make, out_shardings=shardings).lower(seed, loaded)
    compiled, lowered = compile_beside(first, lower_step)
    return compiled(seed, loaded), lowered, report


def write_records(run: TrainingRun, ready: Ready, report: Report | None) -> None:
    """Writes what describes the run into its folder."""
    write_description(run.workdir, run.description, versions())
    write_split_table(run.workdir / SPLIT_TABLE, run.dataset)
    if ready.duplicates is not None:
        write_duplicates(run.workdir / DUPLICATES, ready.images, ready.duplicates)
    if run.progress.position == Position(0):
        (run.workdir / "init_from.json").unlink(missing_ok=True)
    if report is not None:
        content = {"init_from": report.source, "tensors": report.fates}
        write_atomically(run.workdir / "init_from.json", json.dumps(content, indent=2) + "\n")


def plan(run: TrainingRun, settled: dict[str, str]) -> str:
    """Returns the plan of the run, as text.

    Args:
        run: the run.
        settled: title -> text, for the choices that were made while the run started.
    """
    dataset, train, model = run.dataset, run.config.train, run.description.model
    counts = dataset.counts()
    sizes = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    height, width = run.description.preprocessing.image_size
    device = versions()["device"]
    if isinstance(model, MedMambaConfig):
        names = scans(model, height, width)
        scan = repr(names[0]) if len(set(names)) == 1 else f"{', '.join(names)} (by stage)"
        device = f"{device}, scan {scan}"
    weights, groups = dataset.splits["train"].weights, dataset.splits["train"].groups
    parts = f" in {train.accumulate} parts" if train.accumulate > 1 else ""
    lines = [
        *parameter_counts(run.state.params),
        ("model", f"{run.config.model.variant}, {model.block}, {model.compute_dtype}"),
        ("device", device),
        ("data", f"{dataset.name}: {dataset.description}"),
        ("images", f"{'SYNTHETIC, ' if dataset.synthetic else ''}{sizes}, {height}x{width} px"),
        *(
            ("", f"{split:<6}" + ", ".join(f"{name} {n}" for name, n in counts[split].items()))
            for split in dataset.splits
        ),
    ]
    if not dataset.synthetic and groups is None:
        lines.append(("patients", "not known: no check that each is in one split only"))
    lines.append(
        (
            "training",
            f"{train.epochs} epochs of {run.steps} steps, batch {train.batch_size}{parts}, "
            f"{SAMPLERS[train.sampler].text}",
        )
    )
    if train.shard_state:
        lines.append(("state", f"shared by {len(run.parallel.devices)} devices"))
    if place := run.description.augmented_on:
        lines.append(("augmented", f"{run.config.data.augmentation}, on the {place}"))
    if weights is not None:
        lines.append(("weights", f"of images, in training: {weights.min():g}..{weights.max():g}"))
    frozen = jax.tree.leaves(run.spec.frozen)
    if any(frozen):
        lines.append(("frozen", f"{sum(frozen)} of {len(frozen)} tensors"))
    if train.lr_backbone_factor != 1:
        backbone = train.lr * train.lr_backbone_factor
        lines.append(("lr", f"{train.lr:g} in the head, {backbone:g} in the rest"))
    if train.ema_decay:
        lines.append(
            ("evaluated", f"the moving average of the parameters, decay {train.ema_decay}")
        )
    lines += [*settled.items(), ("workdir", str(run.workdir))]
    if run.progress.position > Position(0):
        lines.append(("resuming", progress_text(run.progress, run.steps)))
    return as_text(lines)


def check_init_from(source: pathlib.Path) -> None:
    """Checks what can be checked of `train.init_from` before any image is read.

    Raises:
        FileNotFoundError: it names nothing.
        ImportError: it is a file that needs PyTorch, which is not installed.
        UserError: it is a file, but not one of weights.
    """
    if not source.exists():
        raise MissingFileError(f"train.init_from: there is no {source}")
    if not source.is_dir():
        check_readable(source)
