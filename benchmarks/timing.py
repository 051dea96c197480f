"""Times calls and writes the benchmarks' results."""

import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from medmamba_jax.training.reporting import versions


def seconds_per_call(run: Callable[[], Any], *, calls: int, groups: int) -> float:
    """Returns the median over groups of the time of one call.

    A group queues `calls` calls and waits once, so that on a GPU the host works while the device
    does. The first group is a warm-up and does not count.
    """
    timings = []
    for _ in range(groups + 1):
        begun = time.perf_counter()
        outputs = [run() for _ in range(calls)]
        jax.block_until_ready(outputs[-1])
        timings.append((time.perf_counter() - begun) / calls)
    return statistics.median(timings[1:])


def write_json(path: str, rows: list[dict[str, Any]]) -> None:
    """Writes the rows, the device and the versions of the libraries as JSON."""
    content = {"versions": versions(), "rows": rows}
    pathlib.Path(path).write_text(json.dumps(content, indent=2) + "\n")
