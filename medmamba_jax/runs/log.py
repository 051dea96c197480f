"""Logs of a run. Each line is JSON; `metrics.jsonl` has a line for each epoch."""

import json
import pathlib
from typing import Any

from absl import logging

from medmamba_jax.data.naming import listed
from medmamba_jax.errors import UserError

METRICS_FILE = "metrics.jsonl"


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl`; damaged lines are left out with a warning."""
    return read_rows(workdir / METRICS_FILE, "epoch")


def read_rows(path: pathlib.Path, number: str) -> list[dict[str, Any]]:
    """Returns the rows of a log; damaged lines are left out with a warning.

    Every sound row has a whole number of the given name, such as "epoch".

    A log that does not exist has no rows.

    Raises:
        UserError: the log cannot be read.
    """
    rows: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give this account the permission to read"
            " it, or move it to another place"
        ) from error
    damaged = []
    for i, line in enumerate(text.splitlines()):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get(number), int):
            rows.append(row)
        else:
            damaged.append(f"line {i + 1}")
    if damaged:
        logging.warning("%s has damaged lines, which are left out: %s", path, listed(damaged))
    return rows
