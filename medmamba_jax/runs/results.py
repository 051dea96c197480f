"""What a run writes about labelled images: numbers with intervals, curves, and each prediction."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from medmamba_jax.assessment.calibration import Calibration, at_temperature
from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.assessment.curves import CURVES
from medmamba_jax.assessment.intervals import Bootstrap, metric_intervals
from medmamba_jax.assessment.prediction_sets import assess_sets
from medmamba_jax.assessment.thresholds import at_thresholds
from medmamba_jax.data.csv_table import write_csv_table
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.evaluation import write_predictions
from medmamba_jax.files import write_atomically
from medmamba_jax.metrics import Outputs, measure, metrics_of

CALIBRATED = ("loss", "brier", "ece")  # what the temperature changes


def assess(
    outputs: Outputs,
    images: LabelledImages,
    settings: ResultsConfig,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Computes all results for labelled images, as a dictionary that JSON can hold.

    Args:
        outputs: labels and logits of the images.
        images: the images. `Bootstrap.over` says which units are resampled.
        settings: how results are computed.
        calibration: what was fitted on other images. None leaves out all that needs it.

    Returns:
        What `metrics.measure` returns, and `intervals` (`intervals.metric_intervals`). With a
        calibration also `thresholds` (`thresholds.at_thresholds`), `calibrated`, the metrics that
        the temperature changes, and of a multi-class set `prediction_sets`: level ->
        `prediction_sets.assess_sets`.
    """
    bootstrap = Bootstrap.over(images.groups, images.files, settings)
    found = measure(outputs) | {"intervals": metric_intervals(outputs, bootstrap)}
    if calibration is None:
        return found
    cooled = at_temperature(outputs, calibration.temperature)
    rows = metrics_of(outputs.task)
    return found | {
        "calibrated": {"temperature": calibration.temperature}
        | {name: rows[name].value(cooled) for name in CALIBRATED if name in rows},
        "thresholds": at_thresholds(outputs, calibration.thresholds, bootstrap),
        "prediction_sets": {
            level: assess_sets(outputs, thresholds, bootstrap)
            for level, thresholds in calibration.sets.items()
        },
    }


def write_results(
    folder: pathlib.Path,
    prefix: str,
    results: Mapping[str, Any],
    images: LabelledImages,
    outputs: Outputs,
) -> pathlib.Path:
    """Writes the results, the predictions and the points of the curves; makes the folder.

    Args:
        folder: where the files are written.
        prefix: the first part of the names of the tables, such as "test_", or "".
        results: what `assess` returned, and what the numbers are of.
        images: the evaluated images.
        outputs: labels and logits of these.

    Returns:
        The file of the results: `<prefix without _>.json`, or `results.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{prefix.rstrip('_') or 'results'}.json"
    # It is removed first and written last, so that it never stands beside tables of other results.
    path.unlink(missing_ok=True)
    write_predictions(folder / f"{prefix}predictions.csv", images, outputs)
    for name, curve in CURVES.items():
        header, rows = curve(outputs)
        (folder / f"{prefix}{name}.csv").unlink(missing_ok=True)
        if rows:
            cells = [
                [f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows
            ]
            write_csv_table(folder / f"{prefix}{name}.csv", header, cells)
    write_atomically(path, json.dumps(results, indent=2) + "\n")
    return path
