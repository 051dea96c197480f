"""Writes the page of a summary of runs, `report.html` beside `summary.json`."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import markupsafe

from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import expanded, write_atomically
from medmamba_jax.metrics import METRICS, metrics_of
from medmamba_jax.report import PAGE
from medmamba_jax.report.figures import as_svg, intervals_figure
from medmamba_jax.report.page import environment

SUMMARY = "summary.json"


def write_summary_report(folder: str | pathlib.Path) -> pathlib.Path:
    """Writes the page of a summary, with links to the pages of its runs.

    Args:
        folder: a folder that `medmamba summarize` has written.

    Returns:
        The page.

    Raises:
        FileNotFoundError: the folder holds no summary.
        OSError: the folder cannot be written to.
        UserError: `summary.json` is damaged.
    """
    folder = expanded(folder).resolve()
    path = folder / SUMMARY
    if not path.is_file():
        raise MissingFileError(f"{folder} holds no {SUMMARY}: write it with medmamba summarize")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): write it again") from error
    context = {
        "title": folder.name,
        "summary": summary,
        "metrics": metrics_of(summary["task"]),
        "pages": {
            run["folder"]: _page_of(run["folder"], folder)
            for model in summary["models"]
            for run in model["runs"]
        },
        "folder_name": lambda text: pathlib.Path(text).name,
        "compared": [(pair, list(_compared(pair, summary))) for pair in summary["comparisons"]],
        "figure": _figure(summary),
    }
    page = environment().get_template("summary.html.j2").render(context)
    write_atomically(folder / PAGE, page)
    return folder / PAGE


def _page_of(run: str, folder: pathlib.Path) -> str:
    """Returns the path of a run's page from the summary's folder; "" if it is not there."""
    page = pathlib.Path(run) / PAGE
    return pathlib.Path(os.path.relpath(page, folder)).as_posix() if page.is_file() else ""


def _compared(
    pair: Mapping[str, Any], summary: Mapping[str, Any]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields class or "", metric and entry of what the page shows of a comparison."""
    for name, entry in pair["metrics"].items():
        if entry["difference"] is not None:
            yield "", name, entry
    if len(summary["class_names"]) > 2 or summary["task"] == "multilabel":
        for class_name, entries in pair["per_class"].items():
            yield class_name, "auc", entries["auc"]


def _figure(summary: Mapping[str, Any]) -> markupsafe.Markup:
    rows: dict[str, list[tuple[str, float, float | None, float | None]]] = {}
    for name, metric in metrics_of(summary["task"]).items():
        if metric.in_headline:
            entries = [(model["name"], model["metrics"][name]) for model in summary["models"]]
            known = [
                (model, e["value"], e["low"], e["high"])
                for model, e in entries
                if e["value"] is not None
            ]
            if known:
                rows[METRICS[name].heading] = known
    if not rows:
        return markupsafe.Markup("")
    return markupsafe.Markup(as_svg(intervals_figure(rows), "intervals", "Values and intervals"))
