"""Writes a run's report: pages that open from disk, figures for a paper, and the model card."""

import base64
import functools
import pathlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe

from medmamba_jax.assessment.calibration import doubt_about
from medmamba_jax.assessment.thresholds import RULES_IN_WORDS
from medmamba_jax.data.texts import printable
from medmamba_jax.files import write_atomically
from medmamba_jax.metrics import METRICS, metrics_of
from medmamba_jax.report import CARD, FIGURES_FOLDER, PAGE, checklist, wording
from medmamba_jax.report.facts import Evaluation, RunFacts, last_part, read_run, without_folders
from medmamba_jax.report.figures import FIGURES, as_svg, draw_figures, write_figures
from medmamba_jax.runs.workdir import flat
from medmamba_jax.version import __version__


def write_report(workdir: str | pathlib.Path, defaults: Mapping[str, Any]) -> pathlib.Path:
    """Writes `report.html`, `model_card.md` and `figures/` from what is in a run's folder.

    Each evaluation elsewhere gets its own `evaluations/<name>/report.html` and figures.

    Args:
        workdir: the run's folder.
        defaults: the default configuration, as `training.Config().to_dict()`. The page shows which
            settings differ from it.

    Returns:
        The page.

    Raises:
        FileNotFoundError: the folder holds no run, or the run has no results yet.
        OSError: the folder cannot be written to.
        UserError: a file of the run is damaged.
    """
    run = read_run(workdir)
    for evaluation in run.elsewhere:
        _write_page(run, evaluation, evaluation.folder, defaults)
    page = _write_page(run, run.main, run.workdir, defaults)
    context = _context(run, run.main, defaults)
    # A card is about one model, so that it leaves out what another checkpoint gave.
    context["others"] = _others(run, run.main, same_checkpoint=True)
    card = environment().get_template("model_card.md.j2").render(context)
    write_atomically(run.workdir / CARD, card)
    return page


def _write_page(
    run: RunFacts, evaluation: Evaluation, folder: pathlib.Path, defaults: Mapping[str, Any]
) -> pathlib.Path:
    figures = draw_figures(run, evaluation)
    if evaluation.elsewhere:
        figures.pop("training_curves", None)
    drawn = [
        {
            "name": name,
            "title": FIGURES[name].title,
            "caption": FIGURES[name].caption,
            "svg": markupsafe.Markup(as_svg(figure, name, FIGURES[name].title)),
        }
        for name, figure in figures.items()
    ]
    text = (
        environment()
        .get_template("run.html.j2")
        .render(_context(run, evaluation, defaults) | {"figures": drawn})
    )
    write_figures(folder / FIGURES_FOLDER, figures)
    write_atomically(folder / PAGE, text)
    return folder / PAGE


@functools.cache
def environment() -> jinja2.Environment:
    """Returns the templates, in which every value is escaped for HTML or for Markdown."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("medmamba_jax.report"),
        autoescape=lambda name: not (name or "").endswith(".md.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    found.filters |= {
        "num": _as_data,
        "plain": wording.number,
        "ends": wording.interval,
        "md": _as_markdown,
        "link": lambda path: urllib.parse.quote(str(path)),
        "data_uri": _data_uri,
        "last_part": last_part,
        "doubt": doubt_about,
    }
    found.globals["version"] = __version__
    return found


def _finalized(value: Any) -> Any:
    """Makes characters visible that would reorder the text around them, or break a line."""
    return printable(value) if type(value) is str and not value.isprintable() else value


def _as_data(value: float | None, metric: str = "") -> markupsafe.Markup:
    """Returns a value as an element that holds it in full, too."""
    if value is None:
        return markupsafe.Markup('<span class="none">undefined</span>')
    return markupsafe.Markup('<data value="{}">{}</data>').format(
        repr(value), wording.number(value, metric)
    )


def _as_markdown(value: object) -> str:
    """Returns a text in which no character means anything to Markdown or HTML."""
    text = printable(str(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|$~^-])", r"\\\1", text)


def _data_uri(path: pathlib.Path) -> str:
    """Returns a picture as an address that contains it; "" if the file is not there."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _context(run: RunFacts, evaluation: Evaluation, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the templates show."""
    return {
        "run": run,
        "evaluation": evaluation,
        "results": evaluation.results,
        "title": run.workdir.name,
        "headline": wording.headline(evaluation),
        "where_from": wording.where_from(evaluation),
        "notes": wording.notes(run, evaluation),
        "metrics": _metrics(evaluation),
        "class_metrics": {
            name: wording.heading(name)
            for name, metric in metrics_of(run.description.task).items()
            if metric.of_class and metric.in_table
        },
        "class_operating": {
            name: wording.heading(name)
            for name, metric in metrics_of(run.description.task).items()
            if metric.of_class and not metric.in_table
        },
        "class_intervals": evaluation.results.get("intervals", {}).get("per_class", {}),
        "rules": RULES_IN_WORDS,
        "calibrated": _calibrated(evaluation),
        "gallery": {
            kind: [entry for entry in evaluation.gallery if entry.kind == kind]
            for kind in ("mistake", "near")
        },
        "others": _others(run, evaluation, same_checkpoint=False),
        "checklist": checklist.checklist(run),
        "split_text": checklist.split_text(run),
        "duplicates_text": checklist.duplicates_text(run),
        "exclusions_text": checklist.exclusions_text(run),
        "settings": run.settings,
        "differing": _differing(run.settings, without_folders(flat(defaults))),
        "speed": _speed(run),
        "figures": [],
    }


def _metrics(evaluation: Evaluation) -> list[dict[str, Any]]:
    results = evaluation.results
    intervals = results.get("intervals", {}).get("metrics", {})
    undefined = results.get("undefined", {})  # earlier results have none
    return [
        {
            "name": name,
            "heading": wording.heading(name),
            "value": results[name],
            "interval": intervals.get(name),
            "why": undefined.get(name, ""),
        }
        for name, metric in metrics_of(results["task"]).items()
        if results.get(name) is not None or name in undefined or metric.in_headline
    ]


def _calibrated(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns the metrics that the temperature changes, before and after it."""
    after = evaluation.results.get("calibrated", {})
    return [
        {
            "heading": wording.heading(name),
            "before": evaluation.results[name],
            "after": value,
        }
        for name, value in after.items()
        if name in METRICS
    ]


def _others(
    run: RunFacts, evaluation: Evaluation, *, same_checkpoint: bool
) -> list[dict[str, Any]]:
    """Returns the other results of the run, with the link to their page where they have one."""
    found: list[tuple[Evaluation, pathlib.PurePath | None]] = []
    up = pathlib.PurePath("..", "..") if evaluation.elsewhere else pathlib.PurePath()
    for other in run.others(evaluation, same_checkpoint=same_checkpoint):
        link = None
        if other.elsewhere:
            link = up / other.folder.relative_to(run.workdir) / PAGE
        elif other is run.main:
            link = up / PAGE
        found.append((other, link))
    return [
        {
            "name": other.name,
            "where_from": wording.where_from(other),
            "headline": checklist.headline_metrics(other),
            "metrics": [row for row in _metrics(other) if METRICS[row["name"]].in_headline],
            "chose": other.chose_checkpoint,
            "epoch": other.epoch,
            "link": None if link is None else link.as_posix(),
        }
        for other, link in found
    ]


def _differing(
    settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Returns the settings that are not the default ones: name, value, default."""
    return [
        (name, value, defaults[name])
        for name, value in settings.items()
        if name in defaults and _plain(value) != _plain(defaults[name])
    ]


def _plain(value: Any) -> Any:
    """A list, as JSON holds it, in place of a tuple."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _speed(run: RunFacts) -> list[tuple[str, str]]:
    """Returns what the log says of speed and memory."""
    rates = [row["images_per_second"] for row in run.log if row.get("images_per_second")]
    waits = [row["data_wait_share"] for row in run.log if row.get("data_wait_share") is not None]
    memory = [row["peak_memory_bytes"] for row in run.log if row.get("peak_memory_bytes")]
    found = [("device", run.versions.get("device", "not known"))]
    if rates:
        rates.sort()
        found.append(("training", f"{rates[len(rates) // 2]:.0f} images/s (median over epochs)"))
    if waits:
        found.append(("waiting for images", f"{sum(waits) / len(waits):.0%} of the time"))
    most = f"{max(memory) / 2**30:.2f} GiB" if memory else "the device does not report it"
    return [*found, ("most memory of the device", most)]
