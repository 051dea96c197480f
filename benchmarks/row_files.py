"""Measures the rows of a table, each in a process of its own, and keeps each row in a file.

A process of its own has all of a device's memory, and its peak of memory is that of one row. A row
that has a file is not measured again, so a table can grow over several calls.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# How JAX and PyTorch say that a device has too little memory.
_EXHAUSTED = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "out of memory")
TOO_LARGE = "does not fit into memory"


def measure_missing(folder: pathlib.Path, commands: Mapping[str, Sequence[str]]) -> None:
    """Measures the rows that have no file, one after another, and names those that fail.

    A row that does not fit into memory gets a file, too. A row that fails in another way gets none,
    and is tried again the next time.

    Args:
        folder: `<name>.json` holds a row, and `<name>.log` holds what its process printed.
        commands: name -> a module and its arguments. The module writes a row with `--json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in commands.items():
        path, log = folder / f"{name}.json", folder / f"{name}.log"
        if path.exists():
            continue
        arguments = [sys.executable, "-m", *command, "--json", str(path)]
        print(f"{name}: python {' '.join(arguments[1:])}", flush=True)
        with log.open("w") as out:
            ended = subprocess.run(arguments, stdout=out, stderr=subprocess.STDOUT, check=False)
        if not ended.returncode:
            continue
        text = log.read_text(errors="replace")
        reason = (text.strip().splitlines() or ["no output"])[-1]
        if any(sign in text for sign in _EXHAUSTED):
            reason = TOO_LARGE
            content = {"versions": {}, "rows": [{"failed": reason}]}
            path.write_text(json.dumps(content) + "\n")
        print(f"{name}: left out: {reason}", file=sys.stderr, flush=True)


def read_rows(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns name -> row of every file in a folder, with its `versions` as another key."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        found[path.stem] = content["rows"][0] | {"versions": content["versions"]}
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(value: float | None, digits: int = 0) -> str:
    """Returns a number as text, with commas between thousands; "" for None."""
    return "" if value is None else f"{value:,.{digits}f}"


def where(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the devices and the versions of libraries that rows were measured with."""
    found: dict[str, set[str]] = {}
    for row in rows.values():
        for name, version in row["versions"].items():
            found.setdefault(name, set()).add(version)
    names = ("device", "jax", "flax", "torch", "timm", "mamba_ssm", "python")
    return "; ".join(
        f"{name} {' and '.join(sorted(found[name]))}" for name in names if name in found
    )
