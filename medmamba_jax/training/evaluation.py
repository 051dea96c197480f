"""Evaluation: logits of a split, the metrics of them, and `results/`."""

import copy
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from medmamba_jax.data import OwnData, as_dataset, build_dataset, eval_batches
from medmamba_jax.data.reading.caching import open_caches
from medmamba_jax.errors import NonFiniteLossError
from medmamba_jax.runs import CheckpointStore, RunDescription
from medmamba_jax.training.experiment import Experiment
from medmamba_jax.training.hosts import is_first, say
from medmamba_jax.training.metrics import METRICS
from medmamba_jax.training.predictions import write_predictions
from medmamba_jax.training.setup import Setup, prepare, restore
from medmamba_jax.training.step import TrainState
from medmamba_jax.training.workdir import checkpoint_dir, differing_images

# Settings that evaluation may be given: where the images lie and how they travel.
CHANGEABLE = (
    *("data.root", "data.table", "data.split_file", "data.manual_dir", "data.num_workers"),
    *("data.cache", "data.cache_dir", "train.batch_size"),
)
_EVALUATED = ("val", "test")  # the latter where there is one


def evaluate(
    workdir: str | pathlib.Path,
    data: OwnData | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluates a run's best checkpoint; architecture, preprocessing and data are the run's own.

    Args:
        workdir: folder of the run.
        data: images to use in place of those that the run names; as in `train`. What is found of
            other images than the run's is printed and returned, but not written into its folder.
        changes: settings in place of the run's, by names in `CHANGEABLE`.

    Returns, raises:
        As `prepare_evaluation` and `evaluate_best`, one after the other.
    """
    return evaluate_best(prepare_evaluation(workdir, data, changes))


def prepare_evaluation(
    workdir: str | pathlib.Path,
    data: OwnData | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Setup:
    """Does what a caller's mistake can stop; see `evaluate`.

    Raises:
        FileNotFoundError: if the folder holds no run, or no checkpoint yet.
        ValueError: if a change is not allowed, the images are not the run's (in `data`: have
            other classes), or they do not fit the devices.
        DataUnavailableError: if there are no images.
        NotImplementedError: if the run's scan does not run on these devices.
        OSError: if a file cannot be read or written, such as a cache on a full disk.
    """
    workdir = pathlib.Path(workdir).resolve()
    description = RunDescription.read(workdir)
    settings = copy.deepcopy(description.experiment)
    for name, value in (changes or {}).items():
        if name not in CHANGEABLE:
            raise ValueError(
                f"evaluation takes {name} from the run; it can be given {', '.join(CHANGEABLE)}"
            )
        section, key = name.split(".")
        settings[section][key] = value
    experiment = Experiment.from_dict(settings)
    own = data is not None
    dataset = as_dataset(data, experiment.data) if own else build_dataset(experiment.data)
    if dataset.task != description.task:  # the run's loss would be blamed otherwise
        raise ValueError(
            f"cannot evaluate {workdir}: its labels were {description.task}, those of "
            f"{dataset.name!r} are {dataset.task}"
        )
    setup = prepare(experiment, workdir, dataset)
    other_images = differing_images(description, setup.description)
    problems = list(other_images)
    if own and setup.dataset.class_names == description.class_names:
        problems = []  # other images of the same classes are the caller's own choice
    if setup.description.preprocessing != description.preprocessing:
        problems.append("this version prepares images otherwise than the run did")
    if problems:
        raise ValueError(f"cannot evaluate {workdir}: {'; '.join(problems)}")
    with CheckpointStore(checkpoint_dir(workdir)) as store:
        if store.best_epoch() is None:
            raise FileNotFoundError(f"{workdir} has no checkpoint yet; train for one epoch first")
    open_caches(setup.dataset.splits[name] for name in _evaluated(setup))
    return dataclasses.replace(setup, description=description, of_the_run=not other_images)


def evaluate_best(setup: Setup) -> dict[str, dict[str, Any]]:
    """Evaluates the best checkpoint on "val" and "test", if there is one; prints and writes that.

    Returns:
        As `fit`.

    Raises:
        NonFiniteLossError: if the model's outputs are NaN or infinite.
    """
    with CheckpointStore(checkpoint_dir(setup.workdir)) as store:
        epoch = store.best_epoch()
        state, _ = restore(setup, store, epoch)
    folder = setup.workdir / "results"
    results = {}
    for split in _evaluated(setup):
        labels, logits = _outputs(setup, state, split)
        results[split] = {
            "split": split,
            "task": setup.dataset.task,
            "epoch": epoch,
            "best_metric": setup.description.best_metric,
            "dataset": setup.dataset.name,
            "synthetic": setup.dataset.synthetic,
            **_metrics(setup, labels, logits),
        }
        say(f"\n{_table(results[split])}")
        if is_first() and setup.of_the_run:
            folder.mkdir(exist_ok=True)
            path = folder / f"{split}.json"
            path.write_text(json.dumps(results[split], indent=2) + "\n")
            say(str(path))
            table = folder / f"{split}_predictions.csv"
            write_predictions(table, setup.dataset, split, labels, logits)
    return results


def _evaluated(setup: Setup) -> list[str]:
    return [name for name in _EVALUATED if name in setup.dataset.splits]


def evaluate_split(setup: Setup, state: TrainState, split: str) -> dict[str, Any]:
    """Runs a split once, every image exactly once, and returns what `METRICS` report."""
    return _metrics(setup, *_outputs(setup, state, split))


def _metrics(setup: Setup, labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    return METRICS[setup.dataset.task](labels, logits, setup.dataset.class_names)


def _outputs(setup: Setup, state: TrainState, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels (n,) or (n, K) and logits (n, K) of every image of a split, in its order."""
    batches = eval_batches(
        setup.dataset.splits[split],
        setup.description.preprocessing,
        batch_size=setup.experiment.train.batch_size,
        num_workers=setup.experiment.data.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with batches:
        outputs = [
            setup.eval_step(state.params, state.variables, setup.parallel.put_batch(batch))
            for batch in batches
        ]
    outputs = jax.device_get(outputs)
    mask, labels, logits = (
        np.concatenate([output[name] for output in outputs]) for name in ("mask", "label", "logits")
    )
    if not np.isfinite(logits[mask]).all():
        raise NonFiniteLossError(
            f"the model's outputs on {split!r} are not finite after step {int(state.step)}; lower "
            "train.lr or set train.clip_norm=1.0 in a new --workdir"
        )
    return labels[mask], logits[mask]


# Of the metrics that a task has, what stands above the table and its columns of numbers.
_HEADLINE = {
    "accuracy": "accuracy",
    "label_accuracy": "label accuracy",
    "subset_accuracy": "subset accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "macro AUC",
}
_COUNTS = {"num_examples": "images", "num_known": "of known"}


def _table(results):
    """Accuracy, AUC and a line a class, as text."""

    def text(value, digits):
        return "undefined" if value is None else f"{value:.{digits}f}"

    width = max(5, *(len(name) for name in results["class_names"]))
    columns = ("sensitivity", "specificity", "f1", "auc")
    counts = [key for key in _COUNTS if all(key in row for row in results["per_class"].values())]
    headline = [
        f"{name} {text(results[key], 4)}" for key, name in _HEADLINE.items() if key in results
    ]
    synthetic = "SYNTHETIC " if results["synthetic"] else ""
    lines = [
        f"{results['split']} ({results['num_examples']} {synthetic}images, best checkpoint by val "
        f"{results['best_metric']}: epoch {results['epoch']}): {', '.join(headline)}",
        f"  {'class':<{width}}"
        + "".join(f"{_COUNTS[key]:>10}" for key in counts)
        + "".join(f"{name:>13}" for name in columns),
    ]
    for name, row in results["per_class"].items():
        cells = "".join(f"{row[key]:>10}" for key in counts)
        cells += "".join(f"{text(row[column], 3):>13}" for column in columns)
        lines.append(f"  {name:<{width}}{cells}")
    return "\n".join(lines)
