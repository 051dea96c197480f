"""The figures of a report, drawn by matplotlib in colours that colour-blind people can tell apart.

To add a figure, write a function and add a row to `FIGURES`. The page shows it as SVG, and the
folder `figures` has it as PNG and PDF.
"""

import dataclasses
import io
import itertools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmamba_jax.data.texts import printable
from medmamba_jax.files import write_atomically
from medmamba_jax.metrics import METRICS
from medmamba_jax.report.facts import Evaluation, RunFacts

# Okabe and Ito's colours without yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINES = ("-", "--", ":", "-.")
_WIDTH, _HEIGHT = 4.7, 3.6  # inches
_MOST_IN_LEGEND = 28
_LONGEST_NAME = 24  # characters of a class's name
_MOST_POINTS = 600  # of a curve; the CSV table has all
_DPI = 300
# Ending of a figure's file -> metadata that makes the file the same in every drawing.
_METADATA: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}}

# Text stays text in SVG, in the page's own fonts; ids and metadata are the same in every drawing.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medmamba",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # a class may be called $x$
    "figure.constrained_layout.use": True,
}


@dataclasses.dataclass(frozen=True)
class FigureKind:
    """A figure of the report.

    Attributes:
        title: its heading on the page.
        caption: what it shows and how to read it, in one or two sentences.
        draw: facts of the run, results -> the figure, or None where there is nothing to draw.
    """

    title: str
    caption: str
    draw: Callable[[RunFacts, Evaluation], Figure | None]


def draw_figures(run: RunFacts, evaluation: Evaluation) -> dict[str, Figure]:
    """Draws every figure that there is something to draw for, by its name in `FIGURES`."""
    found = {}
    with matplotlib.rc_context(_STYLE):
        for name, kind in FIGURES.items():
            if (figure := kind.draw(run, evaluation)) is not None:
                found[name] = figure
    return found


def as_svg(figure: Figure, name: str, alternative: str) -> str:
    """Returns an `<svg>` element that a page can hold among others.

    Args:
        figure: the figure.
        name: precedes every id, so that no other figure of the page has the same.
        alternative: what the figure shows, for those who cannot see it. It is plain text without
            "<", "&" or quotes.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('"url(#', f'"url(#{name}-').replace('href="#', f'href="#{name}-')
    text = text.replace(": url(#", f": url(#{name}-")
    return text.replace("<svg", f'<svg role="img" aria-label="{alternative}"', 1)


def write_figures(folder: pathlib.Path, figures: Mapping[str, Figure]) -> None:
    """Writes each figure as PNG (300 dpi) and PDF; removes those that are not drawn any more."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files_of_figures(folder):
        if path.stem not in figures:
            path.unlink(missing_ok=True)
    for name, figure in figures.items():
        with matplotlib.rc_context(_STYLE):
            for ending, metadata in _METADATA.items():
                content = io.BytesIO()
                figure.savefig(content, format=ending, dpi=_DPI, metadata=metadata)
                write_atomically(folder / f"{name}.{ending}", content.getvalue())


def files_of_figures(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that `write_figures` can write into a folder."""
    return [folder / f"{name}.{ending}" for name in FIGURES for ending in _METADATA]


def shown(name: str) -> str:
    """Returns the name of a class as a label that matplotlib draws as it is, and not too long."""
    text = printable(name)
    if len(text) > _LONGEST_NAME:
        text = f"{text[: _LONGEST_NAME - 1]}\u2026"
    return f" {text}" if text.startswith("_") else text  # "_" would hide it from the legend


def _training_curves(run: RunFacts, evaluation: Evaluation) -> Figure | None:
    if not run.log:
        return None
    names = list(dict.fromkeys(["loss", run.description.best_metric]))
    figure = Figure(figsize=(_WIDTH, 0.68 * _HEIGHT * len(names)))
    epochs = [row["epoch"] for row in run.log]
    for axes, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        for split, colour, line in zip(("train", "val"), COLOURS, _LINES, strict=False):
            values = [_or_nan(row.get(f"{split}/{name}")) for row in run.log]
            marker = "o" if len(epochs) < 12 else None
            axes.plot(epochs, values, line, color=colour, label=split, marker=marker, ms=4)
        axes.axvline(run.best_epoch, color="#777777", lw=1, ls=":")
        axes.annotate(
            "best checkpoint",
            (run.best_epoch, 1),
            (-3, -3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            va="top",
            ha="right",
            fontsize=7,
            color="#555555",
        )
        axes.set(xlabel="epoch", ylabel=METRICS[name].heading if name in METRICS else name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure


def _confusion_matrix(run: RunFacts, evaluation: Evaluation) -> Figure | None:
    if "confusion_matrix" not in evaluation.results:
        return None
    counts = np.array(evaluation.results["confusion_matrix"])
    names = [shown(name) for name in evaluation.results["class_names"]]
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = min(max(4.0, 0.42 * len(names) + 1.7), 12)
    figure = Figure(figsize=(side + 0.9, side))
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45 if len(names) > 2 else 0, ha=_side(len(names)))
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted class", ylabel="true class")
    small = 9 if len(names) < 5 else 7 if len(names) < 9 else 6
    for i, j in itertools.product(places, places) if len(names) <= 25 else ():
        colour = "white" if shares[i, j] > 0.55 else "black"
        text = f"{counts[i, j]}" if len(names) > 8 else f"{counts[i, j]}\n{shares[i, j]:.0%}"
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=small)
    bar = figure.colorbar(picture, ax=axes, shrink=0.8)
    bar.set_label("share of the true class")
    return figure


def _roc(run: RunFacts, evaluation: Evaluation) -> Figure | None:
    curves = _of_interest(run, evaluation.curves["roc"])
    if not curves:
        return None
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--")
    for (name, points), style in zip(curves.items(), _styles(), strict=False):
        _, x, y = zip(*_thinned(points), strict=True)
        axes.plot(x, y, label=_with_value(evaluation, name, "auc", "AUC"), **style)
    axes.set(xlabel="1 \u2212 specificity (false positive rate)", ylabel="sensitivity")
    return _finished(figure, axes, len(curves))


def _precision_recall(run: RunFacts, evaluation: Evaluation) -> Figure | None:
    curves = evaluation.curves["precision_recall"]
    if not curves:
        return None
    figure, axes = _square()
    for (name, points), style in zip(curves.items(), _styles(), strict=False):
        _, x, y = zip(*_thinned(points), strict=True)
        label = _with_value(evaluation, name, "average_precision", "AP")
        axes.plot(x, y, drawstyle="steps-post", label=label, **style)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
    return _finished(figure, axes, len(curves))


def _reliability(run: RunFacts, evaluation: Evaluation) -> Figure | None:
    curves = evaluation.curves["reliability"]
    if not curves:
        return None
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--")
    for (name, points), style in zip(curves.items(), _styles(), strict=False):
        _, x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="o", ms=4, label=shown(name), **style)
    axes.set(xlabel="mean probability in the bin", ylabel="share of such images in the bin")
    return _finished(figure, axes, len(curves))


def _decision_curve(run: RunFacts, evaluation: Evaluation) -> Figure | None:
    curves = evaluation.curves["decision_curve"]
    if not curves:
        return None
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    axes = figure.subplots()
    highest, lowest = 0.0, 0.0
    for (name, points), style in zip(curves.items(), _styles(), strict=False):
        thresholds, benefit, of_all = (np.array(x) for x in zip(*points, strict=True))
        axes.plot(thresholds, benefit, label=shown(name), **style)
        faint = style | {"lw": 1.2, "linestyle": ":"}
        axes.plot(thresholds, of_all, label=f"treat all ({shown(name)})", **faint)
        highest = max(highest, benefit.max(), of_all.max())
        lowest = min(lowest, max(benefit.min(), -0.3 * highest))
    axes.axhline(0, color="#555555", lw=1, label="treat none")
    axes.set(xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1))
    room = 0.06 * (highest - lowest) or 0.05
    axes.set_ylim(lowest - room, highest + room)
    return _finished(figure, axes, 2 * len(curves) + 1)


# Name of a figure, and of its files -> what it is.
FIGURES: dict[str, FigureKind] = {
    "training_curves": FigureKind(
        "Training",
        "Loss, and the metric that chose the checkpoint, after each epoch. The training values were"
        " measured while the model changed, on augmented images if the run augments them. If it"
        " mixes images (policy strong), the training loss stays larger, and the other training"
        " values are worse, than they would be without mixing.",
        _training_curves,
    ),
    "confusion_matrix": FigureKind(
        "Confusion matrix",
        "Rows are the true class, columns the predicted class. Each row adds up to the images of"
        " its class; the colour is the share of the row.",
        _confusion_matrix,
    ),
    "roc": FigureKind(
        "ROC curve",
        "Sensitivity against false alarms over all thresholds, one class against the rest. The"
        " dashed diagonal is chance. Of two classes the curve of the second one is drawn.",
        _roc,
    ),
    "precision_recall": FigureKind(
        "Precision and recall",
        "How many of the images that the model calls positive are positive, against how many of"
        " the positive images it finds. It depends on how common a class is in these images.",
        _precision_recall,
    ),
    "reliability": FigureKind(
        "Reliability",
        "Bins of equally many images: the probability that the model gave, and how often it was"
        " so. On the dashed diagonal probabilities can be taken at their word.",
        _reliability,
    ),
    "decision_curve": FigureKind(
        "Decision curve",
        "Net benefit of treating by the model, at each probability from which on one would treat."
        " The model helps where its line is above those of treating all and of treating none.",
        _decision_curve,
    ),
}


def intervals_figure(
    rows: Mapping[str, Sequence[tuple[str, float, float | None, float | None]]],
) -> Figure:
    """Draws values with their intervals, a panel for each metric and a line for each model.

    Args:
        rows: heading of a metric -> name of a model, value, and the ends of its interval.
    """
    with matplotlib.rc_context(_STYLE):
        most = max(map(len, rows.values()))
        height = 0.6 + (0.5 + 0.3 * most) * len(rows)
        figure = Figure(figsize=(_WIDTH * 1.4, height))
        for axes, (heading, models) in zip(
            figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True
        ):
            for place, (_, value, low, high) in enumerate(models):
                colour = COLOURS[place % len(COLOURS)]
                if low is not None and high is not None:
                    axes.plot([low, high], [place, place], color=colour, lw=2)
                axes.plot([value], [place], "o", color=colour, ms=6)
            axes.set_yticks(range(len(models)), [shown(name) for name, *_ in models])
            axes.set_ylim(len(models) - 0.4, -0.6)
            axes.set_title(heading, loc="left", fontsize=9)
    return figure


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return figure, axes


def _finished(figure: Figure, axes: Axes, lines: int) -> Figure:
    if lines <= 4:
        axes.legend(loc="best")
    elif lines <= _MOST_IN_LEGEND:
        figure.set_figheight(_HEIGHT + 0.17 * -(-lines // 2))
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _of_interest(
    run: RunFacts, curves: Mapping[str, list[list[float]]]
) -> Mapping[str, list[list[float]]]:
    """Returns the curves without that of the first of two classes, which is a mirror image."""
    both = run.description.task == "multiclass" and len(run.description.class_names) == 2
    return dict(list(curves.items())[1:]) if both else curves


def _with_value(evaluation: Evaluation, name: str, metric: str, heading: str) -> str:
    """Returns the name of a class with its value, as the legend shows it."""
    # Tables hold names without surrounding spaces.
    rows = {key.strip(): row for key, row in evaluation.results["per_class"].items()}
    value = rows.get(name, {}).get(metric)
    return shown(name) if value is None else f"{shown(name)}, {heading} {value:.3f}"


def _styles() -> Any:
    for line, colour in itertools.cycle(itertools.product(_LINES, COLOURS)):
        yield {"linestyle": line, "color": colour}


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """Returns a curve with fewer points; the first and the last one stay."""
    if len(points) <= _MOST_POINTS:
        return points
    kept = np.linspace(0, len(points) - 1, _MOST_POINTS).round().astype(int)
    return [points[i] for i in kept]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _side(count: int) -> str:
    return "right" if count > 2 else "center"
