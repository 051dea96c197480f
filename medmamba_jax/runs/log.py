"""`metrics.jsonl`: the log of a run's epochs."""

import json
import pathlib
from typing import Any

from absl import logging

METRICS_FILE = "metrics.jsonl"


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl`; damaged lines are left out with a warning."""
    path = workdir / METRICS_FILE
    rows: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    damaged = 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("epoch"), int):
            rows.append(row)
        else:
            damaged += 1
    if damaged:
        logging.warning("%s: left out %d damaged lines", path, damaged)
    return rows
