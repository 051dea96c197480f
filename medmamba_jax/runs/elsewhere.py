"""Evaluates a run on labelled images of another origin, such as another hospital's."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from medmamba_jax.data import LabelledImages
from medmamba_jax.errors import UserError
from medmamba_jax.evaluation import labelled_outputs, table, write_predictions
from medmamba_jax.files import write_atomically
from medmamba_jax.metrics import measure
from medmamba_jax.parallel import is_first_host, say
from medmamba_jax.runs.run import Run
from medmamba_jax.runs.workdir import warn_of_trained_images

EVALUATIONS = "evaluations"


def evaluate_elsewhere(
    run: Run, images: LabelledImages, name: str = "", classes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on all of these images, and writes the results.

    The run's own results stay. The new ones are `results.json` and `predictions.csv` in the run's
    folder `evaluations/<name>`, where they replace those of an earlier call with the same name.

    Args:
        run: the run.
        images: labelled images. They may lack classes of the run. Splits in them are not used.
        name: the name of the folder; by default the name of the images.
        classes: name of a class of the images -> name of the run's class, where they differ.

    Returns:
        What `evaluation.evaluate` returns, and what the numbers are of. A metric of a class that
        no image shows is None.

    Raises:
        NonFiniteLossError: an output of the model is NaN or infinite.
        UserError: the images have another task, or a class that the run does not have; or the name
            is no name of a folder.
    """
    name = name or images.name
    if not name or name.startswith(".") or any(c in name for c in "/\\"):
        raise UserError(f"{name!r} is no name for a folder of results: give another one (--name)")
    description = run.description
    images = _with_classes(images, description.task, description.class_names, classes or {})
    warn_of_trained_images(run.workdir, {name: images})
    outputs = labelled_outputs(run.predictor, images)
    results = {
        "evaluated": name,
        "epoch": run.epoch,
        "best_metric": description.best_metric,
        "synthetic": images.synthetic,
        **measure(outputs),
    }
    synthetic = "SYNTHETIC " if images.synthetic else ""
    title = f"{name} ({len(images)} {synthetic}images, checkpoint of epoch {run.epoch})"
    say(table(results, title))
    if is_first_host():
        folder = run.workdir / EVALUATIONS / name
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
        write_predictions(folder / "predictions.csv", images, outputs)
        say(str(folder / "results.json"))
    return results


def _with_classes(
    images: LabelledImages, task: str, names: tuple[str, ...], classes: Mapping[str, str]
) -> LabelledImages:
    """Returns the images with the labels of the run's classes."""
    if images.task != task:
        raise UserError(f"the run is for {task} labels, and the images have {images.task} ones")
    if unused := sorted(set(classes) - set(images.class_names)):
        raise UserError(f"the images have no class {unused[0]!r}; they have {images.class_names}")
    meant = [classes.get(name, name) for name in images.class_names]
    unknown = [name for name in meant if name not in names]
    if unknown:
        raise UserError(
            f"the run has no class {unknown[0]!r}, but {', '.join(names)}: say by --classes which"
            " of its classes is meant"
        )
    index = np.array([names.index(name) for name in meant])
    if task == "multiclass":
        labels = index[images.labels].astype(np.int32)
    else:  # a class that the images do not name is not known
        if len(set(meant)) < len(meant):
            raise UserError("two classes of a multi-label set cannot be one class of the run")
        labels = np.full((len(images), len(names)), np.nan, np.float32)
        labels[:, index] = images.labels
    return dataclasses.replace(images, labels=labels, class_names=names)
