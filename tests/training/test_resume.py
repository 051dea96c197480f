"""A run goes on from a checkpoint that its user chooses, and from one whose best one is lost."""

import json
import os
import shutil
import threading

import jax
import pytest

import medmamba_jax as mm
from medmamba_jax.parallel import DataParallel
from medmamba_jax.runs import Checkpoints, CheckpointStore, Position, Progress
from medmamba_jax.runs import run as run_module
from medmamba_jax.training.reporting import read_metrics
from medmamba_jax.training.resuming import with_best

TIMES = ("images_per_second", "data_wait_share", "first_step_seconds", "peak_memory_bytes")


def without_times(workdir):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(workdir)]


def damage(checkpoint):
    path = max((checkpoint / "params").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)


def test_a_damaged_checkpoint_is_left_for_the_previous_one(
    config, images, run_of_two_epochs, capsys
):
    folder, before = run_of_two_epochs, without_times(run_of_two_epochs)
    expected = json.loads((folder / "results" / "test.json").read_text())
    damage(folder / "checkpoints" / "2")
    for use in (
        lambda: mm.train(config(epochs=3), folder, images),
        lambda: mm.load_run(folder).predictor,
    ):
        with pytest.raises(mm.UserError, match=r"checkpoint 2 in .* --resume=previous continues"):
            use()
    assert mm.train(config(epochs=2), folder, images, resume="previous")["test"] == expected
    assert "after epoch 1, best so far" in capsys.readouterr().out
    assert without_times(folder) == before
    assert Checkpoints(folder / "checkpoints").positions() == [Position(1), Position(2)]


def test_a_checkpoint_that_is_named(config, images, run_of_two_epochs):
    with pytest.raises(mm.UserError, match="no checkpoint '7': give latest, previous or one of"):
        mm.start_run(config(epochs=3), run_of_two_epochs, images, resume="7")
    with mm.start_run(config(epochs=3), run_of_two_epochs, images, resume="1") as run:
        assert run.progress.epoch == 1 == int(run.state.step) // run.steps
    assert Checkpoints(run_of_two_epochs / "checkpoints").positions() == [Position(1)]


def test_damage_is_found_before_any_image_is_read(config, images, trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    damage(folder / "checkpoints" / "2")
    monkeypatch.setattr("medmamba_jax.training.start.prepare", None)  # it reads every image
    with pytest.raises(mm.UserError, match=r"checkpoint 2 in .* is damaged"):
        mm.start_run(config(epochs=3), folder, images)


@pytest.mark.parametrize("lost", ["gone", "damaged"])
def test_the_latest_counts_as_the_best_where_that_one_is_lost(
    config, images, run_of_two_epochs, caplog, lost
):
    checkpoints = run_of_two_epochs / "checkpoints"
    with (
        CheckpointStore(checkpoints) as store,
        mm.start_run(
            config(epochs=3), shutil.copytree(run_of_two_epochs, run_of_two_epochs / "copy"), images
        ) as run,
    ):
        row = {"epoch": 3} | {f"val/{name}": 0.25 for name in run.progress.best_values}
        store.save(Progress(3, 2, run.progress.best_values), run.state.to_parts())
    path = run_of_two_epochs / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    if lost == "gone":
        shutil.rmtree(checkpoints / "2")
    else:
        damage(checkpoints / "2")
    with pytest.raises(
        mm.UserError, match=f"of epoch 2, is {lost}.* and no epoch is left to train"
    ):
        mm.start_run(config(epochs=3), run_of_two_epochs, images)
    # With this patience, nothing would be left to train if checkpoint 2 were still there.
    with mm.start_run(config(epochs=4, patience=1), run_of_two_epochs, images) as run:
        assert run.step is not None and not run.is_finished
        assert (run.progress.epoch, run.progress.best_epoch) == (3, 3)
        assert set(run.progress.best_values.values()) == {0.25}
    assert f"the best checkpoint, of epoch 2, is {lost}" in caplog.text
    assert "epoch 3, from which the run goes on, counts as the best" in caplog.text


@pytest.mark.parametrize("lost", ["best", "both"])
def test_what_counts_as_the_best_inside_an_epoch(two_and_a_half, lost, caplog):
    for name in {"best": ("1",), "both": ("1", "2")}[lost]:
        damage(two_and_a_half / name)
    store = Checkpoints(two_and_a_half)
    (two_and_a_half / "metrics.jsonl").write_text(json.dumps({"epoch": 2, "val/auc": 0.5}) + "\n")
    found = with_best(store.progress(Position(2, 3)), store, two_and_a_half, epochs=3)
    expected = {"best": (2, {"auc": 0.5}), "both": (0, {})}[lost]
    assert (found.best_epoch, found.best_values) == expected
    assert "the best checkpoint, of epoch 1, is damaged" in caplog.text


@pytest.fixture
def two_and_a_half(tmp_path):
    """Checkpoints 1, which is the best, 2 and 2-3."""
    parts = {"params": {"w": jax.numpy.arange(1000.0)}}
    with CheckpointStore(tmp_path) as store:
        for position in (Position(1), Position(2), Position(2, 3)):
            kept = (2,) if position.steps else ()
            store.save(Progress(position.epoch, 1, {"auc": 0.75}, 0, position.steps, kept), parts)
    return tmp_path


@pytest.mark.parametrize(
    ("lost", "told"), [("2", "goes on from checkpoint 1"), ("12", "begins anew")]
)
def test_the_loss_of_the_latest_checkpoint_is_told(
    config, images, run_of_two_epochs, monkeypatch, caplog, lost, told
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for name in lost:
        shutil.rmtree(run_of_two_epochs / "checkpoints" / name)
    monkeypatch.setattr("medmamba_jax.training.start.prepare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mm.start_run(config(epochs=3), run_of_two_epochs, images)
    assert "the latest checkpoint, 2, is gone from" in caplog.text and told in caplog.text


@pytest.mark.nightly
def test_the_best_checkpoint_is_read_while_a_run_saves_better_ones(run_of_two_epochs):
    description = mm.load_run(run_of_two_epochs).description
    parallel = DataParallel.over_all_devices()

    def read():
        return run_module._read_best(run_of_two_epochs, description, parallel)

    _, (params, statistics) = read()
    expected = jax.tree.map(lambda x: x.tolist(), jax.device_get(params))
    done, saved = threading.Event(), []

    def train():
        with CheckpointStore(run_of_two_epochs / "checkpoints") as store:
            for epoch in range(3, 10_000):
                if done.is_set():
                    return
                progress = Progress(epoch, epoch, best_before=epoch - 1)
                store.save(progress, {"params": params, "statistics": statistics})
                saved.append(epoch)

    training = threading.Thread(target=train)
    training.start()
    try:
        found = [read() for _ in range(100)]
    finally:
        done.set()
        training.join()
    assert len(saved) > 10
    for epoch, (read_params, _) in found:
        assert 2 <= epoch <= saved[-1]
        assert jax.tree.map(lambda x: x.tolist(), jax.device_get(read_params)) == expected
