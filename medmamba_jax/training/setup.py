"""What an experiment comes to on these images and these devices, before anything is compiled."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from medmamba_jax.data import Dataset, Preprocessing, steps_per_epoch
from medmamba_jax.data.reading.caching import cached
from medmamba_jax.locking import Lock
from medmamba_jax.models.scans import scans
from medmamba_jax.predictor import normalize
from medmamba_jax.runs import CheckpointStore, Progress, RunDescription
from medmamba_jax.training.experiment import Experiment
from medmamba_jax.training.objective import Objective, make_objective
from medmamba_jax.training.optimizer import make_optimizer
from medmamba_jax.training.sharding import DataParallel
from medmamba_jax.training.step import (
    StepSpec,
    TrainState,
    eval_step,
    graphdefs,
    init_state,
    train_step,
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """An experiment, its images and its devices, with the jitted steps.

    Attributes:
        experiment: the configuration.
        workdir: folder of the run.
        dataset: the images, behind caches where that pays.
        caches: where these are, as text.
        description: what is saved beside the weights.
        objective: the loss and the metric of the best checkpoint.
        parallel: how a batch is spread over devices.
        spec: what the steps need besides arrays.
        steps: training steps in an epoch.
        scans: names of the scan's implementations, one for each stage.
        train_step, eval_step: the jitted steps.
        lock: keeps other processes from training in the workdir until it is closed.
        of_the_run: whether the images are the run's own, whose results are kept in the workdir.
    """

    experiment: Experiment
    workdir: pathlib.Path
    dataset: Dataset
    caches: str
    description: RunDescription
    objective: Objective
    parallel: DataParallel
    spec: StepSpec
    steps: int
    scans: tuple[str, ...]
    train_step: Any
    eval_step: Any
    lock: Lock | None = None
    of_the_run: bool = True


def prepare(experiment: Experiment, workdir: pathlib.Path, dataset: Dataset) -> Setup:
    """Checks that everything fits together and builds what the steps need.

    Raises:
        ValueError: if the experiment, the images and the devices do not fit together.
        NotImplementedError: if the scan asked for does not run on these devices.
    """
    options = experiment.train
    missing = [name for name in ("train", "val") if name not in dataset.splits]
    if missing:
        raise ValueError(f"the data set {dataset.name!r} lacks the splits {missing}")
    objective = make_objective(options, dataset)
    model_config = experiment.model_config(len(dataset.class_names))
    preprocessing = Preprocessing.from_config(experiment.data, model_config.in_channels)
    if min(preprocessing.image_size) < model_config.min_image_size:
        raise ValueError(
            f"data.image_size = {experiment.data.image_size} must be at least "
            f"{model_config.min_image_size} with model.patch_size = {model_config.patch_size}"
        )
    stage_scans = scans(model_config, *preprocessing.image_size)
    steps = steps_per_epoch(dataset.splits["train"], options.batch_size)
    parallel = DataParallel(options.batch_size)
    description = RunDescription(
        experiment=experiment.to_dict(),
        model=model_config,
        preprocessing=preprocessing,
        class_names=dataset.class_names,
        task=dataset.task,
        best_metric=objective.best_metric,
        dataset=dataset.name,
        # After everything that is quick to check: of one's own objects this reads every image.
        images_sha256={name: split.digest() for name, split in dataset.splits.items()},
        synthetic=dataset.synthetic,
    )
    dataset, caches = cached(dataset, preprocessing, experiment.data)
    training, evaluation = graphdefs(model_config)
    spec = StepSpec(
        graphdef=training,
        eval_graphdef=evaluation,
        optimizer=make_optimizer(options, steps),
        normalize=functools.partial(normalize, preprocessing=preprocessing),
        loss=objective.loss,
    )
    return Setup(
        experiment=experiment,
        workdir=workdir,
        dataset=dataset,
        caches=caches,
        description=description,
        objective=objective,
        parallel=parallel,
        spec=spec,
        steps=steps,
        scans=stage_scans,
        train_step=jax.jit(
            functools.partial(train_step, spec=spec),
            donate_argnums=0,
            out_shardings=parallel.replicated,
        ),
        eval_step=jax.jit(
            functools.partial(eval_step, spec=spec), out_shardings=parallel.replicated
        ),
    )


def start_or_resume(setup: Setup, store: CheckpointStore) -> tuple[TrainState, Progress]:
    """Returns the state to go on from and how far it is."""
    epoch = store.latest_epoch()
    if epoch is not None:
        return restore(setup, store, epoch)
    # Jitted: one compilation is quicker than hundreds of small ones, array by array.
    start = jax.jit(_initial_state(setup), out_shardings=setup.parallel.replicated)
    return start(), Progress(epoch=0, best_epoch=0, best_value=0.0)


def restore(setup: Setup, store: CheckpointStore, epoch: int) -> tuple[TrainState, Progress]:
    """Reads a checkpoint onto this run's devices."""
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=setup.parallel.replicated),
        jax.eval_shape(_initial_state(setup)),
    )
    progress, parts = store.restore(epoch, like.to_parts())
    return TrainState.from_parts(parts), progress


def _initial_state(setup):
    seed = setup.experiment.train.seed
    return functools.partial(init_state, setup.description.model, setup.spec.optimizer, seed)
