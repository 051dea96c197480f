"""`medmamba predict RUN PATH...`: the best checkpoint of a run on images without labels."""

import argparse
import sys
from typing import Any

import numpy as np
from absl import logging

from medmamba_jax.assessment.calibration import doubt_about
from medmamba_jax.cli.images import add_command, ended, progress
from medmamba_jax.data.images.augmentation import MIRRORING
from medmamba_jax.data.inputs import image_paths
from medmamba_jax.data.texts import for_terminal, printable
from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded
from medmamba_jax.prediction import (
    Predictions,
    as_rows,
    predict_files,
    set_thresholds,
    what_it_knows,
    writer_of,
)
from medmamba_jax.runs import load_trained

_SHOWN = 3  # classes in a line of the terminal


def add_predict(subcommands: Any) -> None:
    """Adds `predict` to the subcommands of a parser."""
    parser = add_command(subcommands, "predict", "classify images with a run's best checkpoint")
    parser.add_argument(
        "--output", metavar="FILE", help="write a table, FILE.csv, or JSON lines, FILE.jsonl"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--top", type=int, default=0, metavar="N", help="columns for the N likeliest classes"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="of two classes, predict the second one from this probability on; of a multi-label"
        " model, each class",
    )
    parser.add_argument(
        "--abstain-below",
        type=float,
        default=0.0,
        metavar="P",
        help='answer "undecided" if the predicted class has a smaller probability',
    )
    parser.add_argument(
        "--mirror",
        action="store_true",
        help="average with the mirror image; an error if the run was trained without such images",
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="divide the logits by the temperature that was fitted on the validation images",
    )
    parser.add_argument(
        "--set",
        type=float,
        metavar="LEVEL",
        help="0.9 or 0.95: add the set of classes that holds the true one in about so many cases",
    )
    parser.set_defaults(run=predict)


def predict(options: argparse.Namespace) -> tuple[str, int]:
    """Classifies images, prints a line for each, and writes the table; see `predict_files`.

    Returns:
        The text to print, and the exit code: 1 if a file could not be read, else 0.

    Raises:
        FileExistsError: the file for the table exists, and `--overwrite` is not given.
        FileNotFoundError: there is no such run or image.
        UserError: an argument does not fit the run.
    """
    trained = load_trained(options.source, batch_size=options.batch_size)
    predictor = trained.predictor
    policy = "none" if trained.training is None else trained.training.augmentation
    if options.mirror and policy not in MIRRORING:
        raise UserError(
            f"--mirror: the model was trained with data.augmentation={policy!r}, which shows no"
            " mirror images"
        )
    decision = {"threshold": options.threshold, "abstain_below": options.abstain_below}
    nothing = Predictions.none(predictor.task, predictor.class_names)
    as_rows(nothing, top=options.top, **decision)  # a mistake shows before any image is read
    temperature = predictor.temperature(options.calibrated)
    if doubt := doubt_about(temperature):
        logging.warning("%s", doubt)
    if options.set is not None:
        set_thresholds(predictor, options.set)
    write = None
    if options.output:
        write = writer_of(expanded(options.output), overwrite=options.overwrite)
    paths = image_paths(options.places)
    total = len(paths) * (2 if options.mirror else 1)
    with progress(total, "classifying") as bar:
        found = predict_files(
            predictor,
            paths,
            mirror=options.mirror,
            calibrated=options.calibrated,
            level=options.set,
            progress=bar.update,
        )
    header, rows = as_rows(found, top=options.top, **decision)
    lines = []
    if write is None:
        lines += _lines(found, found.decided(**decision))
    else:
        write(header, rows)
        lines.append(f"{len(rows)} images in {options.output}")
    answer = ended("\n".join(lines), found.unreadable, "classified")
    if found.names:
        print(for_terminal(f"note: {what_it_knows(predictor)}"), file=sys.stderr)
    return answer


def _lines(found: Predictions, answers: list[str]) -> list[str]:
    lines = []
    for name, answer, p in zip(found.names, answers, found.probabilities, strict=True):
        likeliest = sorted(zip(-p, found.class_names, strict=True))[:_SHOWN]
        shown = ", ".join(f"{name} {-p:.3f}" for p, name in likeliest)
        lines.append(f"{printable(name)}: {answer} ({shown})")
    if found.sets is not None:
        for row, inside in enumerate(found.sets):
            names = ", ".join(found.class_names[k] for k in np.flatnonzero(inside))
            lines[row] += f", prediction set: {names or 'empty'}"
    return lines
