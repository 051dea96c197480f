"""A summary of runs as text for the terminal and as a CSV table; see `runs.summaries.summarize`."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medmamba_jax.data.csv_table import write_csv_table
from medmamba_jax.metrics import Metric, metrics_of

_MOST_RUNS = 6  # with more, the table leaves out the value of each run
_CSV_COLUMNS = (
    *("model", "compared_with", "run", "metric", "class", "value", "low", "high"),
    *("mean", "sd", "min", "max", "seeds_low", "seeds_high", "p", "method"),
)


def summary_text(summary: Mapping[str, Any]) -> str:
    """Returns a table for each model, a table for each pair of models, and the notes."""
    synthetic = "SYNTHETIC " if summary["synthetic"] else ""
    patients = summary["num_patients"]
    of = "" if patients is None else f" of {patients} patients"
    boot = summary["bootstrap"]
    parts = [
        f"{summary['images']}: {summary['num_examples']} {synthetic}images{of}; intervals are 95 %,"
        f" from {boot['resamples']} resamples of {boot['resampled']}"
    ]
    parts += [_model_text(model, summary) for model in summary["models"]]
    parts += [_comparison_text(pair, summary) for pair in summary["comparisons"]]
    parts += [f"note: {note}" for note in summary["notes"]]
    return "\n\n".join(parts)


def write_summary_csv(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
    """Writes a row for each metric of each run, model and pair of models, and of each class.

    In the rows of a pair, which name the other model under `compared_with`, the value is the
    difference, model minus other model.
    """
    rows: list[dict[str, Any]] = []

    def add(found: Mapping[str, Any], **names: str) -> None:
        for class_name, metric, entry in _entries(found):
            values = dict(entry) if isinstance(entry, Mapping) else {"value": entry}
            if "difference" in values:
                values["value"] = values["difference"]
            rows.append({**values, **names, "metric": metric, "class": class_name})

    for model in summary["models"]:
        add(model, model=model["name"])
        if len(model["runs"]) > 1:
            for run in model["runs"]:
                add(run, model=model["name"], run=pathlib.Path(run["folder"]).name)
    for pair in summary["comparisons"]:
        add(pair, model=pair["first"], compared_with=pair["second"])
    cells = [
        ["" if row.get(column) is None else row[column] for column in _CSV_COLUMNS] for row in rows
    ]
    write_csv_table(path, _CSV_COLUMNS, cells)


def _entries(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for metric, entry in found["metrics"].items():
        yield "", metric, entry
    for class_name, entries in found["per_class"].items():
        for metric, entry in entries.items():
            yield class_name, metric, entry


def _model_text(model: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    runs = model["runs"]
    several = len(runs) > 1
    each = {_run_name(run, runs): run["metrics"] for run in runs} if several else {}
    if len(each) > _MOST_RUNS:
        each = {}
    spread = ["mean", "s.d.", "range"] if several else []
    # The value of several runs on the same images is their mean.
    mean = several and (model["kind"] == "seeds" or summary["elsewhere"])
    whole = [] if mean else ["all folds" if several else "value"]
    header = ["metric", *each, *spread, *whole, "interval"]
    rows = []
    for name, metric in _shown(summary["task"], model["metrics"], "value"):
        entry = model["metrics"][name]
        row = [metric.heading, *(metric.text(values[name]) for values in each.values())]
        if several:
            row += [metric.text(entry["mean"]), metric.text(entry["sd"])]
            row.append(metric.range_text([entry["min"], entry["max"]]))
        row += [metric.text(entry["value"])] if whole else []
        rows.append([*row, metric.range_text([entry["low"], entry["high"]])])
    what = "run" if not several else f"{model['kind']}, {len(runs)} runs"
    return f"{model['name']} ({what})\n{_aligned(header, rows)}"


def _shown(
    task: str, entries: Mapping[str, Mapping[str, Any]], key: str
) -> Iterator[tuple[str, Metric]]:
    """Yields the metrics that a table has and that are defined."""
    for name, metric in metrics_of(task).items():
        if metric.in_table and entries[name][key] is not None:
            yield name, metric


def _run_name(run: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    if len({other["seed"] for other in runs}) > 1:
        parts.append(f"seed {run['seed']}")
    if run["fold"]:
        parts.append(f"fold {run['fold'].partition('/')[0]}")
    return " ".join(parts)


def _comparison_text(pair: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    seeds = "seeds_low" in next(iter(pair["metrics"].values()))
    last = "interval over seeds" if seeds else "p"
    header = ["metric", "first", "second", "difference", "interval", last, "method"]
    rows = []
    metrics = metrics_of(summary["task"])
    named = _shown(summary["task"], pair["metrics"], "difference")
    shown = [("", name, pair["metrics"][name]) for name, _ in named]
    if len(summary["class_names"]) > 2 or summary["task"] == "multilabel":
        shown += [(c, "auc", entries["auc"]) for c, entries in pair["per_class"].items()]
    for class_name, name, entry in shown:
        metric = metrics[name]
        heading = f"{metric.heading} of {class_name}" if class_name else metric.heading
        rows.append(
            [
                heading,
                metric.text(entry["first"]),
                metric.text(entry["second"]),
                metric.text(entry["difference"], sign=True),
                metric.range_text([entry["low"], entry["high"]], sign=True),
                metric.range_text([entry["seeds_low"], entry["seeds_high"]], sign=True)
                if seeds
                else _p(entry["p"]),
                entry["method"],
            ]
        )
    differing = "; ".join(
        f"{key} {first!r} and {second!r}" for key, (first, second) in pair["settings"].items()
    )
    title = f"{pair['first']} (first) and {pair['second']} (second) on the same images"
    return f"{title}\nwhat differs: {differing or 'none'}\n{_aligned(header, rows)}"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose first and last columns begin, and whose others end, at one place."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = []
    for row in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        cells[0] = f"{row[0]:<{widths[0]}}"
        if header[-1] == "method":
            cells[-1] = row[-1]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
