"""The line printed after an epoch, and the files that a run logs to."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from medmamba_jax.errors import UserError
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


def test_damaged_lines_are_named_and_the_sound_ones_stay(tmp_path, caplog):
    rows = [{"epoch": epoch, "x": float(epoch)} for epoch in range(1, 5)]
    lines = [json.dumps(row) for row in rows]
    lines[1:2] = ["garbage \x00\ufffd", "{}", '{"epoch": "2"}', "[" * 100_000]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with MetricWriter(tmp_path, epoch=4) as writer:
        assert writer.rows == [rows[0], *rows[2:]]
        writer.write({"epoch": 5})
    assert "has damaged lines, which are left out: line 2; line 3; line 4" in caplog.text
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 3, 4, 5]


def events(folder):
    """(tag, step, value) of all event files, as TensorBoard's own format says.

    A record is its length (8 bytes), a checksum (4), the event, and a checksum (4).
    """
    found = []
    for path in sorted((folder / "tensorboard").glob("events.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (size,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            place += 16 + size
    return found


def test_events_have_each_epoch_once_wherever_the_process_was_killed(tmp_path):
    rows = [{"epoch": epoch, "a/x": epoch / 2, "y": None} for epoch in range(1, 6)]
    with MetricWriter(tmp_path, epoch=0) as writer:
        for row in rows[:3]:
            writer.write(row)
    # The checkpoint of epoch 3 was not complete.
    with MetricWriter(tmp_path, epoch=2) as writer:
        writer.write(rows[2])
    assert events(tmp_path) == [("a/x", n, n / 2) for n in (1, 2, 3)]

    def killed(*_):
        raise KeyboardInterrupt

    # The process was killed after it had written the row, and before it wrote the events.
    with MetricWriter(tmp_path, epoch=3) as writer, pytest.MonkeyPatch.context() as patch:
        patch.setattr("medmamba_jax.training.reporting._write_events", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.write(rows[3])
    with MetricWriter(tmp_path, epoch=4) as writer:
        writer.write(rows[4])
    assert events(tmp_path) == [("a/x", n, n / 2) for n in (1, 2, 3, 4, 5)]
    with MetricWriter(tmp_path, epoch=5) as writer:
        pass  # a run that is finished writes nothing
    assert len(events(tmp_path)) == 5


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read \(Is a directory\)"):
        read_metrics(tmp_path)
