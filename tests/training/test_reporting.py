"""The line printed after an epoch, and the files that a run logs to."""

import json

import pytest

from medmamba_jax.metrics import METRICS, TASKS, metrics_of
from medmamba_jax.training.reporting import MetricWriter, epoch_line, read_metrics

VALUES = {name: 0.9 - 0.02 * i for i, name in enumerate(METRICS)}


@pytest.mark.parametrize("task", TASKS)
def test_the_line_shows_the_headline_and_the_metric_that_chooses(task):
    rows = metrics_of(task)
    row = {"epoch": 3, "images_per_second": None}
    row |= {f"train/{name}": 0.0 for name in rows}
    row |= {f"val/{name}": VALUES[name] for name in rows}
    for chosen in rows:
        line = epoch_line(row, task, 150, chosen)
        assert line.startswith("epoch   3/150 | train ")
        _, _, val = line.split(" | ")
        for name, metric in rows.items():
            text = f"{VALUES[name]:.1%}" if metric.percent else f"{VALUES[name]:.4f}"
            shown = metric.in_headline or name == chosen
            assert (f" {metric.heading} {text}" in val) == shown


def test_a_metric_without_a_value_is_undefined():
    row = {f"{split}/{name}": None for split in ("train", "val") for name in METRICS}
    line = epoch_line(
        row | {"epoch": 1, "images_per_second": 10.4, "data_wait_share": 0.5},
        "multiclass",
        9,
        "auc",
    )
    assert "AUC undefined" in line and line.endswith("| 10 img/s | data wait 50%")


def test_rows_of_epochs_without_a_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = [{"epoch": 1, "x": 1.0}, {"epoch": 2, "x": None}]
    lines = [json.dumps(row) for row in [*kept, {"epoch": 3, "x": 3.0}]]
    path.write_text("\n".join([*lines, '{"epoch": 4, "tra']))
    before = path.read_bytes()
    with MetricWriter(tmp_path, epoch=2) as writer:
        assert writer.rows == kept
        assert path.read_bytes() == before  # nothing is written until there is something new
        writer.write({"epoch": 3, "x": 3.5})
    assert read_metrics(tmp_path) == [*kept, {"epoch": 3, "x": 3.5}]
    assert not list(tmp_path.glob("*.partial"))
