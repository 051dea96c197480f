"""`medmamba evaluate RUN`: the best checkpoint of a run, on the run's val and test images."""

import argparse
import json
from typing import Any

from medmamba_jax.predictor import BATCH_SIZE
from medmamba_jax.runs import load_run
from medmamba_jax.runs.workdir import MAY_CHANGE

_SETTINGS = tuple(key for key in MAY_CHANGE if key.startswith("data."))


def add_evaluate(subcommands: Any) -> None:
    """Adds `evaluate` to the subcommands of a parser."""
    parser = subcommands.add_parser(
        "evaluate", help="evaluate a run's best checkpoint on its val and test images"
    )
    parser.add_argument("run_folder", metavar="RUN", help="the run's folder, such as runs/xray")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="images in a batch")
    for key in _SETTINGS:
        parser.add_argument(f"--{key}", metavar="VALUE", help="in place of the run's own setting")
    parser.set_defaults(run=evaluate)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluates a run, prints its tables and writes its results; see `Run.evaluate`."""
    given = {key: getattr(options, key) for key in _SETTINGS}
    changes = {key: _value(text) for key, text in given.items() if text is not None}
    load_run(options.run_folder, batch_size=options.batch_size).evaluate(changes=changes)


def _value(text: str) -> Any:
    """Returns a number or a bool where the text is one, and else the text."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return text
