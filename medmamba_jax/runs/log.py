"""Logs of a run, whose lines are JSON: `metrics.jsonl` has one for each epoch."""

import json
import pathlib
from typing import Any

from absl import logging

from medmamba_jax.data.naming import listed

METRICS_FILE = "metrics.jsonl"


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl`; damaged lines are left out with a warning."""
    return read_rows(workdir / METRICS_FILE, "epoch")


def read_rows(path: pathlib.Path, number: str) -> list[dict[str, Any]]:
    """Returns the rows of a log, which each have a whole number of this name; see `read_metrics`.

    A log that does not exist has no rows.
    """
    rows: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
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
        logging.warning("%s: left out what is damaged: %s", path, listed(damaged))
    return rows
