import argparse
import ast
import collections
import dataclasses
import importlib.util
import json
import pathlib
import re
import statistics
import time
import types

import pytest

import benchmarks.resnet  # noqa: F401  (it adds the ResNets to the values of model.variant)
import medmamba_jax as mm
from benchmarks import accuracy
from benchmarks.accuracy import Driver
from benchmarks.experiments import (
    CHOSEN,
    GROUPS,
    MODELS,
    OWN,
    SETS,
    Experiment,
    Job,
    flags_of,
    jobs_of,
)
from medmamba_jax.data.images.augmentation import POLICIES

ROOT = pathlib.Path(__file__).parents[2]


def config_of(flags):
    """The configuration that flags of `main.py` give, read without absl."""
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    spec = importlib.util.spec_from_file_location("config", ROOT / given.pop("config"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    for name, text in given.items():
        _, section, *rest, key = name.split(".")
        place = config[section][rest[0]] if rest else config[section]
        is_text = isinstance(place[key], str) or key == "compute_dtype"
        place[key] = text if is_text else ast.literal_eval(text)
    return mm.Config.of(config)


def test_every_run_has_flags_that_main_takes():
    tried = collections.Counter()
    for job in jobs_of([experiment for group in GROUPS.values() for experiment in group]):
        recipe = OWN.get(job.experiment.recipe)
        # Another version of the package may have policies that this one does not have.
        if job.seed or job.fold > 1 or (recipe and recipe.augmentation not in POLICIES):
            continue
        config = config_of(flags_of(job, "/data"))
        tried[job.experiment.data] += 1
        assert config.model.variant == MODELS[job.experiment.model]
        assert config.train.patience == 0 and not config.results.report
        assert config.data.fold == ("1/5" if job.fold else "")
        if recipe:
            assert config.train.warmup_epochs == pytest.approx(0.05 * config.train.epochs)
            assert config.data.augmentation.endswith("_flip") == (
                SETS[job.experiment.data].mirrored and recipe.augmentation != "none"
            )
    assert set(tried) == set(SETS)


def test_the_recipe_of_the_paper_is_that_of_the_official_runs():
    breast = config_of(flags_of(Job(Experiment("breastmnist", "t", "paper"), 3), "/data")).train
    chosen = (breast.lr, breast.schedule, breast.step_epochs, breast.epochs, breast.batch_size)
    assert chosen == (1e-3, "step", (50, 75), 100, 128)
    assert (breast.seed, breast.ema_decay, breast.label_smoothing) == (3, 0.0, 0.0)
    cxr = config_of(flags_of(Job(Experiment("cxr", "v1", "paper"), 0), "/data"))
    assert (cxr.train.lr, cxr.train.epochs, cxr.train.batch_size) == (1e-4, 25, 64)
    assert cxr.data.augmentation == "none" and cxr.model.compute_dtype is None
    paper = mm.Config().train  # the defaults are the paper's
    assert cxr.train == dataclasses.replace(paper, epochs=25)


def test_the_config_for_own_images_has_the_recipe_that_was_compared():
    compared = config_of(flags_of(Job(Experiment("cxr", "t", CHOSEN), 0), "/data"))
    own = config_of(flags_of(Job(Experiment("cxr", "t", "default"), 0), "/data"))
    assert own.data == compared.data
    length = {"epochs": compared.train.epochs, "warmup_epochs": compared.train.warmup_epochs}
    assert dataclasses.replace(own.train, **length) == compared.train
    assert own.train.warmup_epochs <= 0.05 * own.train.epochs


def test_folds_and_seeds_are_runs_of_their_own():
    experiments = [Experiment("ham10000", "t", "paper", folds=2), Experiment("cxr", "t", "paper")]
    names = [job.name for job in jobs_of([*experiments, experiments[1]])]
    assert names == [
        "ham10000/t/paper/fold_1",
        "ham10000/t/paper/fold_2",
        "cxr/t/paper/seed_0",
    ]


# This program takes the place of a training run, and writes what a run writes.
PROGRAM = """
import json, os, pathlib, signal, sys, time
# A job in the background of a shell ignores the interrupt, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, seconds, failing = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "True"
(folder / "results").mkdir(parents=True, exist_ok=True)
with (folder.parent / "order").open("a") as order:
    order.write(f"{folder.name} {os.environ['CUDA_VISIBLE_DEVICES']}\\n")
if failing:
    sys.exit("error: it does not work")
(folder / "started").touch()
time.sleep(seconds)
row = {"images_per_second": 10.0, "peak_memory_bytes": 2**30}
(folder / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
time.sleep(seconds)
seed = int(folder.name[-1])
for split in ("val", "test"):
    results = {"epoch": 1, "auc": 0.9 + 0.01 * seed, "accuracy": 0.8}
    (folder / "results" / f"{split}.json").write_text(json.dumps(results))
(folder / "run.json").write_text(json.dumps({"config": {"model": {"variant": "medmamba_t"}}}))
(folder / "versions.json").write_text(json.dumps({"device": "a", "jax": "1", "flax": "2"}))
"""


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Returns a function that drives three runs of `PROGRAM`, and returns the driver."""
    monkeypatch.setattr(accuracy, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(accuracy, "_SIGNAL_SECONDS", 5)

    def drive(*, seconds=0.05, failing=(), minutes=1.0, gpus=2, done=()):
        def command(self, job):
            options = [str(self.root / job.name), str(seconds), str(job.seed in failing)]
            return ["-c", PROGRAM, *options]

        monkeypatch.setattr(Driver, "_command", command)
        args = argparse.Namespace(root=tmp_path, gpus=gpus, per_gpu=1, minutes=minutes, extra=[])
        jobs = jobs_of([Experiment("cxr", "t", "paper", (0, 1, 2))])
        driver = Driver(args, jobs, dict.fromkeys(done))
        driver.run()
        return driver, [accuracy.row_of(tmp_path, job) for job in jobs]

    return drive


def order(tmp_path):
    lines = (tmp_path / "cxr/t/paper/order").read_text().splitlines()
    return [line.split() for line in lines]


@pytest.mark.slow
def test_the_first_run_compiles_for_the_others(drive, tmp_path):
    driver, rows = drive(seconds=0.3)
    ran = order(tmp_path)
    assert [name for name, _ in ran][:2] == ["seed_0", "seed_1"]
    begun = [(tmp_path / f"cxr/t/paper/seed_{seed}/started").stat().st_mtime for seed in (0, 1)]
    compiled = (tmp_path / "cxr/t/paper/seed_0/metrics.jsonl").stat().st_mtime
    assert begun[0] < compiled < begun[1]
    assert {gpu for _, gpu in ran} == {"0", "1"}
    assert not driver.failed and [row["test_auc"] for row in rows] == [0.9, 0.91, 0.92]
    assert [row["seed"] for row in rows] == [0, 1, 2]

    text = accuracy.summary(rows)
    assert f"0.910 ± {statistics.stdev([0.9, 0.91, 0.92]):.3f}" in text
    assert "| cxr | medmamba_t | paper | 3 seeds |" in text and "| 10 | 1.0 |" in text
    drive(seconds=0.3)  # all are finished
    assert order(tmp_path) == ran
    drive(seconds=0.01, done=["cxr/t/paper/seed_1", "cxr/t/paper/seed_2"])  # another command
    assert [name for name, _ in order(tmp_path)[3:]] == ["seed_0"]


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(drive, tmp_path, capsys):
    driver, rows = drive(failing=(0,))
    assert [job.name for job in driver.failed] == ["cxr/t/paper/seed_0"]
    assert [row is None for row in rows] == [True, False, False]
    said = capsys.readouterr().out
    assert re.search(r"seed_0 FAILED after \d+ s: error: it does not work", said)


@pytest.mark.slow
def test_the_time_limit_interrupts_what_runs(drive, tmp_path, capsys, monkeypatch):
    started = tmp_path / "cxr/t/paper/seed_0/started"
    clock = types.SimpleNamespace(
        monotonic=lambda: 61.0 if started.exists() else 0.0,  # a minute has gone when the run began
        sleep=time.sleep,
        strftime=time.strftime,
    )
    monkeypatch.setattr(accuracy, "time", clock)
    driver, rows = drive(seconds=30, minutes=1, gpus=1)
    assert rows == [None] * 3 and not driver.running and not driver.failed
    assert [name for name, _ in order(tmp_path)] == ["seed_0"]
    assert "seed_0 was interrupted" in capsys.readouterr().out
    log = (tmp_path / "cxr/t/paper/seed_0.log").read_text()
    assert "KeyboardInterrupt" in log


def test_the_files_that_are_brought_home_are_small(drive, tmp_path):
    job = Job(Experiment("cxr", "t", "paper"), 0)
    folder = tmp_path / "runs" / job.name
    for name in ("results/test.json", "checkpoints/1/weights", "metrics.jsonl", "run.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(name))
    accuracy.bring_home(tmp_path / "runs", tmp_path / "out", job)
    found = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"test.json", "metrics.jsonl", "run.json"}
