"""`medmamba evaluate RUN`: the best checkpoint of a run, on the run's images or on others."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.data import DataConfig, LabelledImages
from medmamba_jax.data.build import find_images, source_of
from medmamba_jax.data.csv_table import read_csv_table
from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded
from medmamba_jax.report import report_after
from medmamba_jax.runs import Run, load_run
from medmamba_jax.runs.elsewhere import evaluate_elsewhere
from medmamba_jax.runs.workdir import MAY_CHANGE, flat
from medmamba_jax.training.config import Config

# Setting that may change -> its default.
_SECTIONS = {"data": DataConfig().to_dict(), "results": ResultsConfig().to_dict()}
_SETTINGS = {key: value for key, value in flat(_SECTIONS).items() if key in MAY_CHANGE}


def add_evaluate(subcommands: Any) -> None:
    """Adds `evaluate` to the subcommands of a parser."""
    parser = subcommands.add_parser(
        "evaluate",
        help="evaluate a run's best checkpoint on its val and test images, or on others",
    )
    parser.add_argument("run_folder", metavar="RUN", help="the run's folder, such as runs/xray")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images in a batch; the run's own by default"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="evaluate all images of this folder, table or npz file, into RUN/evaluations/NAME",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="with --data: a CSV table with the columns other and run, which name the same class",
    )
    parser.add_argument("--name", default="", help="with --data: by default the name of PATH")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="write the results into this new folder, for example if RUN cannot be written to; this"
        " makes no report",
    )
    for key in _SETTINGS:
        parser.add_argument(f"--{key}", metavar="VALUE", help="in place of the run's own setting")
    parser.set_defaults(run=evaluate)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluates a run, prints its tables and writes its results.

    See `Run.evaluate`, and with `--data` `evaluate_elsewhere`.

    Raises:
        UserError: two options do not go together.
    """
    given = {key: getattr(options, key) for key in _SETTINGS}
    changes = {key: _value(key, text) for key, text in given.items() if text is not None}
    run = load_run(options.run_folder, batch_size=options.batch_size)
    if not options.data:
        if options.classes or options.name:
            raise UserError("--classes and --name are for the images of --data: give that, too")
        run.evaluate(changes=changes, output=options.output)
        if not options.output:
            _report(run)
        return
    for key in changes:
        if key.startswith("data."):
            raise UserError(f"--{key} is for the run's own images, and not for --data")
    run.settings = ResultsConfig.from_dict(
        run.settings.to_dict() | {key.partition(".")[2]: value for key, value in changes.items()}
    )
    classes = {}
    if options.classes:
        table = read_csv_table(expanded(options.classes))
        if not {"other", "run"} <= set(table.header):
            raise UserError(
                f"{options.classes} needs the columns other and run: a row for each class that has"
                " another name, such as benign,normal"
            )
        classes = dict(zip(table.column("other"), table.column("run"), strict=True))
    images = _images(run, options.data, classes)
    output = expanded(options.output) if options.output else None
    found = evaluate_elsewhere(run, images, options.name, classes, output)
    if output is None:
        _report(run, found["evaluated"])


def _report(run: Run, evaluated: str = "") -> None:
    report_after(run.workdir, Config().to_dict(), wanted=run.settings.report, evaluated=evaluated)


def _images(run: Run, path: str, classes: Mapping[str, str]) -> LabelledImages:
    """Finds images, which are to be read as the run reads its own.

    A table of a multi-label set may have only some of the run's classes as columns, and under the
    names in `classes`.
    """
    own = run.description.preprocessing
    kind = source_of(DataConfig(path=path))
    values = {"path": path, "window": own.window, "frame": own.frame}
    # The run's settings for this kind of source, such as the columns of a table.
    section = {k: v for k, v in run.description.config["data"].items() if k == kind}
    if kind == "csv" and run.description.task == "multilabel":
        header, known = read_csv_table(expanded(path)).header, run.description.class_names
        columns = tuple(name for name in header if classes.get(name, name) in known)
        if len(columns) < 2:
            raise UserError(
                f"{path} has {len(columns)} column(s) of the run's classes ({', '.join(known)}),"
                " and a multi-label table needs two or more: a column may be empty, and --classes"
                " says which columns have other names"
            )
        section[kind] = {**section[kind], "label_column": columns}
    return find_images(DataConfig.from_dict(values | section, ignored=[]))


def _value(key: str, text: str) -> Any:
    """Returns a flag's text as a value of the setting's type.

    Raises:
        UserError: the text is no such value.
    """
    default = _SETTINGS[key]
    if isinstance(default, str):
        return text
    try:
        value = json.loads(text.lower())
    except json.JSONDecodeError:
        value = text
    if type(value) is not type(default):
        raise UserError(f"--{key} must be a value such as {default}; got {text!r}")
    return value
