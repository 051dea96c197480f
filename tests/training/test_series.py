"""A series of runs: which runs it has, what it skips, and that a kill changes nothing."""

import csv
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from plain_block import config_file

import medmamba_jax as mm
from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.runs import RunDescription
from medmamba_jax.training import loop
from medmamba_jax.training import series as module
from medmamba_jax.training.series import series, train_series

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def one_epoch(config):
    return dataclasses.replace(config(epochs=1), results=ResultsConfig(resamples=20))


def test_the_runs_of_a_series(one_epoch):
    assert list(series(one_epoch, (3, 1), 0)) == ["seed_3", "seed_1"]
    folds = series(one_epoch, (), 3)
    assert {name: run.data.fold for name, run in folds.items()} == {
        f"fold_{k}": f"{k}/3" for k in (1, 2, 3)
    }
    both = series(one_epoch, (0, 7), 2)
    assert {name: (run.train.seed, run.data.fold) for name, run in both.items()} == {
        "seed_0/fold_1": (0, "1/2"),
        "seed_0/fold_2": (0, "2/2"),
        "seed_7/fold_1": (7, "1/2"),
        "seed_7/fold_2": (7, "2/2"),
    }
    again = dataclasses.replace(both["seed_7/fold_2"], data=one_epoch.data)
    assert dataclasses.replace(again, train=one_epoch.train) == one_epoch  # all else is the same


def test_series_that_contradict_themselves_are_refused(one_epoch, images, tmp_path):
    fold = dataclasses.replace(one_epoch, data=dataclasses.replace(one_epoch.data, fold="1/3"))
    for problem, config, seeds, folds in (
        ("--seeds names a seed twice: 1, 1", one_epoch, (1, 1), 0),
        ("trains every fold, and data.fold is '1/3'", fold, (), 3),
        ("--folds must be 2 or more; got 1", one_epoch, (), 1),
        ("train.seed must be an integer", one_epoch, (2**32,), 0),
    ):
        with pytest.raises(mm.UserError, match=problem):
            series(config, seeds, folds)
    with pytest.raises(mm.UserError, match="a Dataset is split already"):
        train_series(one_epoch, tmp_path / "x", images, folds=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_finished_runs_stay_and_an_unfinished_one_goes_on(
    one_epoch, images, one_device, tmp_path, monkeypatch, capsys
):
    found = train_series(one_epoch, tmp_path / "s", images, seeds=(0, 1))
    (model,) = found["models"]
    assert (model["name"], model["kind"], found["num_examples"]) == ("s", "seeds", 9)
    assert json.loads((tmp_path / "s" / "summary.json").read_text()) == found
    for run in model["runs"]:
        results = json.loads((pathlib.Path(run["folder"]) / "results" / "test.json").read_text())
        assert run["metrics"]["auc"] == pytest.approx(results["auc"])
        assert run["metrics"]["loss"] == pytest.approx(results["loss"], rel=1e-6)
    values = [run["metrics"]["loss"] for run in model["runs"]]
    assert values[0] != values[1]
    assert model["metrics"]["loss"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert "run 2 of 2, seed_1:" in capsys.readouterr().out

    trained = []

    def fit(run):
        trained.append(run.workdir.name)
        return loop.fit(run)

    monkeypatch.setattr(module, "fit", fit)
    # As if the process had been killed before it wrote these.
    (tmp_path / "s" / "seed_1" / "results" / "test.json").unlink()
    assert train_series(one_epoch, tmp_path / "s", images, seeds=(0, 1)) == found
    assert trained == ["seed_1"]
    description = RunDescription.read(tmp_path / "s" / "seed_0")
    digests = description.images_sha256 | {"train": "of other images"}
    dataclasses.replace(description, images_sha256=digests).write(tmp_path / "s" / "seed_0")
    with pytest.raises(mm.UserError, match=r"seed_0 and .*seed_1 were trained on different images"):
        train_series(one_epoch, tmp_path / "s", images, seeds=(0, 1))
    other = dataclasses.replace(one_epoch, train=dataclasses.replace(one_epoch.train, lr=0.5))
    with pytest.raises(mm.UserError, match=r"seed_0 holds another run: train\.lr was 0\.001"):
        train_series(other, tmp_path / "s", images, seeds=(0, 1))
    with pytest.raises(mm.UserError, match="holds a single run"):
        train_series(one_epoch, tmp_path / "s" / "seed_0", images, seeds=(0, 1))


@pytest.mark.nightly
def test_a_series_augments_at_one_place(one_epoch, images, one_device, tmp_path):
    def augmented(cache):
        data = dataclasses.replace(one_epoch.data, augmentation="light", cache=cache)
        return dataclasses.replace(one_epoch, data=data)

    train_series(augmented("memory"), tmp_path, images, seeds=(0,))
    problem = r"seed_0 augments .* on the host, and .*seed_1 on the device.*with data\.cache=memory"
    with pytest.raises(mm.UserError, match=problem):
        train_series(augmented("device"), tmp_path, images, seeds=(0, 1))
    assert not (tmp_path / "seed_1" / "metrics.jsonl").exists()


CONFIG = config_file(images=60, epochs=8)


@pytest.mark.nightly
def test_a_series_that_was_killed_ends_as_if_it_never_was(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "models")))
    process = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""}}

    def command(workdir):
        options = ["--config=tiny.py", "--folds=3", f"--workdir={workdir}"]
        return [sys.executable, str(ROOT / "main.py"), *options]

    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = subprocess.Popen(command("killed"), **process, **silent)
    deadline = time.monotonic() + 300
    metrics = tmp_path / "killed" / "fold_2" / "metrics.jsonl"
    # The third row is written after the first checkpoint is complete.
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "fold_3").exists()
    first = tmp_path / "killed" / "fold_1" / "results" / "test.json"
    written = first.stat().st_mtime_ns

    resumed, straight = (
        subprocess.run(command(name), **process, capture_output=True, text=True)
        for name in ("killed", "straight")
    )
    assert resumed.returncode == straight.returncode == 0, resumed.stderr + straight.stderr
    assert first.stat().st_mtime_ns == written
    assert "run 1 of 3, fold_1: finished before" in resumed.stdout
    assert "resuming" in resumed.stdout and "60 SYNTHETIC images" in resumed.stdout
    summaries = [
        (tmp_path / name / "summary.json").read_text().replace(str(tmp_path / name), "")
        for name in ("killed", "straight")
    ]
    assert json.loads(summaries[0])["models"][0]["name"] == "killed"
    assert summaries[0].replace('"killed"', '"straight"') == summaries[1]
    with (tmp_path / "killed" / "summary.csv").open(newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"", "fold_1", "fold_2", "fold_3"}
