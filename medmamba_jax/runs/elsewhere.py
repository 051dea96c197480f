"""Evaluates a run on labelled images of another origin, such as another hospital's."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from medmamba_jax.data import LabelledImages
from medmamba_jax.data.naming import listed
from medmamba_jax.errors import UserError
from medmamba_jax.evaluation import labelled_outputs
from medmamba_jax.parallel import on_first_host
from medmamba_jax.runs.run import Run, require_room_for_results
from medmamba_jax.runs.workdir import warn_of_trained_images

EVALUATIONS = "evaluations"


def evaluate_elsewhere(
    run: Run,
    images: LabelledImages,
    name: str = "",
    classes: Mapping[str, str] | None = None,
    output: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on all of these images, and writes the results.

    The run's own results stay. The new ones, `results.json` and the tables beside it, are in the
    run's folder `evaluations/<name>`, where they replace those of an earlier call with the same
    name. Temperature, thresholds and prediction sets are those of the run's validation split.

    Args:
        run: the run.
        images: labelled images. They may lack classes of the run. Splits in them are not used.
        name: the name of the folder; by default the name of the images.
        classes: name of a class of the images -> name of the run's class, where they differ.
        output: a folder for the results in place of `evaluations/<name>`.

    Returns:
        What `results.assess` returns, and what the numbers are of. A metric of a class that
        no image shows is None.

    Raises:
        NonFiniteLossError: an output of the model is NaN or infinite.
        UserError: the folder cannot be written to, or `output` has files; the images have another
            task, or a class that the run does not have; or the name is no name of a folder.
    """
    name = name or images.name
    bad = name.startswith(".") or any(c in name for c in "/\\") or not name.isprintable()
    if not name or bad:
        raise UserError(f"{name!r} is no name for a folder of results: give another one (--name)")
    description = run.description
    images = _with_classes(images, description.task, description.class_names, classes or {})
    folder = output or run.workdir / EVALUATIONS / name
    # Checked before the images are read, so that no work is lost. Only the first host writes.
    on_first_host(functools.partial(require_room_for_results, folder, new=output is not None))
    if (folder / "results.json").is_file():
        logging.warning(
            "the results of an earlier evaluation %r are replaced; another --name keeps both", name
        )
    trained = warn_of_trained_images(run.workdir, {name: images})
    outputs = labelled_outputs(run.predictor, images)
    return run.assessed(
        images,
        outputs,
        {"evaluated": name, "training_images": trained.get(name, 0)},
        run.calibration,
        (folder, ""),
    )


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
            f"the run has no class {listed(unknown)}, but {', '.join(names)}: say which of its"
            " classes is meant, by --classes and a CSV table with the columns other and run"
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
