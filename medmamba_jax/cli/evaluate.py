"""`medmamba evaluate RUN`: the best checkpoint of a run, on the run's val and test images."""

import argparse
import json
from typing import Any

from medmamba_jax.data import DataConfig
from medmamba_jax.errors import UserError
from medmamba_jax.runs import load_run
from medmamba_jax.runs.workdir import MAY_CHANGE, flat

# Setting that may change -> its default.
_SETTINGS = {
    key: value for key, value in flat({"data": DataConfig().to_dict()}).items() if key in MAY_CHANGE
}


def add_evaluate(subcommands: Any) -> None:
    """Adds `evaluate` to the subcommands of a parser."""
    parser = subcommands.add_parser(
        "evaluate", help="evaluate a run's best checkpoint on its val and test images"
    )
    parser.add_argument("run_folder", metavar="RUN", help="the run's folder, such as runs/xray")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images in a batch; the run's own by default"
    )
    for key in _SETTINGS:
        parser.add_argument(f"--{key}", metavar="VALUE", help="in place of the run's own setting")
    parser.set_defaults(run=evaluate)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluates a run, prints its tables and writes its results; see `Run.evaluate`."""
    given = {key: getattr(options, key) for key in _SETTINGS}
    changes = {key: _value(key, text) for key, text in given.items() if text is not None}
    load_run(options.run_folder, batch_size=options.batch_size).evaluate(changes=changes)


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
