"""Evaluation: logits of a split, the metrics of them, and `results/<split>.json`."""

import copy
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from medmamba_jax.checkpoints import CheckpointStore, RunDescription
from medmamba_jax.data import Dataset, build_dataset, eval_batches
from medmamba_jax.train.experiment import Experiment
from medmamba_jax.train.metrics import classification_metrics
from medmamba_jax.train.setup import Setup, prepare, restore
from medmamba_jax.train.step import TrainState
from medmamba_jax.train.workdir import checkpoint_dir, differing_images

# Settings that evaluation may be given: where the images lie and how they travel.
CHANGEABLE = ("data.root", "data.manual_dir", "data.num_workers", "train.batch_size")


class NonFiniteLossError(ArithmeticError):
    """A loss or a model's outputs became NaN or infinite."""


def evaluate(
    workdir: str | pathlib.Path,
    data: Dataset | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluates a run's best checkpoint; architecture, preprocessing and data are the run's own.

    Args:
        workdir: folder of the run.
        data: images to use in place of those that the run names.
        changes: settings in place of the run's, by names in `CHANGEABLE`.

    Returns, raises:
        As `prepare_evaluation` and `evaluate_best`, one after the other.
    """
    return evaluate_best(prepare_evaluation(workdir, data, changes))


def prepare_evaluation(
    workdir: str | pathlib.Path,
    data: Dataset | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Setup:
    """Does what a caller's mistake can stop; see `evaluate`.

    Raises:
        FileNotFoundError: if the folder holds no run, or no checkpoint yet.
        ValueError: if a change is not allowed, the images are not the run's (in `data`: have
            other classes), or they do not fit the devices.
        DataUnavailableError: if there are no images.
        NotImplementedError: if the run's scan does not run on these devices.
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
    dataset = data if data is not None else build_dataset(experiment.data)
    setup = prepare(experiment, workdir, dataset)
    problems = differing_images(description, setup.description)
    if data is not None and setup.dataset.class_names == description.class_names:
        problems = []  # other images of the same classes are the caller's own choice
    if setup.description.preprocessing != description.preprocessing:
        problems.append("this version prepares images otherwise than the run did")
    if problems:
        raise ValueError(f"cannot evaluate {workdir}: {'; '.join(problems)}")
    with CheckpointStore(checkpoint_dir(workdir)) as store:
        if store.best_epoch() is None:
            raise FileNotFoundError(f"{workdir} has no checkpoint yet; train for one epoch first")
    return setup


def evaluate_best(setup: Setup) -> dict[str, dict[str, Any]]:
    """Evaluates the best checkpoint on "val" and "test", prints and writes the results.

    Returns:
        As `fit`.

    Raises:
        NonFiniteLossError: if the model's outputs are NaN or infinite.
    """
    with CheckpointStore(checkpoint_dir(setup.workdir)) as store:
        epoch = store.best_epoch()
        state, _ = restore(setup, store, epoch)
    results = {}
    for split in ("val", "test"):
        results[split] = {
            "split": split,
            "epoch": epoch,
            "dataset": setup.dataset.name,
            "synthetic": setup.dataset.synthetic,
            **evaluate_split(setup, state, split),
        }
        path = setup.workdir / "results" / f"{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results[split], indent=2) + "\n")
        print(f"\n{_table(results[split])}\n{path}", flush=True)
    return results


def evaluate_split(setup: Setup, state: TrainState, split: str) -> dict[str, Any]:
    """Runs a split once, every image exactly once, and returns `classification_metrics`."""
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
    return classification_metrics(labels[mask], logits[mask], setup.dataset.class_names)


def _table(results):
    """Accuracy, AUC and a line a class, as text."""

    def cell(value):
        return f"{'undefined' if value is None else f'{value:.3f}':>13}"

    width = max(5, *(len(name) for name in results["class_names"]))
    columns = ("sensitivity", "specificity", "f1", "auc")
    auc = "undefined" if results["auc"] is None else f"{results['auc']:.4f}"
    synthetic = "SYNTHETIC " if results["synthetic"] else ""
    lines = [
        f"{results['split']} ({results['num_examples']} {synthetic}images, best checkpoint: epoch "
        f"{results['epoch']}): accuracy {results['accuracy']:.4f}, balanced accuracy "
        f"{results['balanced_accuracy']:.4f}, macro AUC {auc}",
        f"  {'class':<{width}}{'images':>8}" + "".join(f"{name:>13}" for name in columns),
    ]
    for name, row in results["per_class"].items():
        cells = "".join(cell(row[column]) for column in columns)
        lines.append(f"  {name:<{width}}{row['num_examples']:>8}{cells}")
    return "\n".join(lines)
