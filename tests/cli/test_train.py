"""main.py and `medmamba train` as a user runs them: in a process of its own."""

import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest
from absl import flags
from PIL import Image
from plain_block import config_file

from medmamba_jax.cli import train
from medmamba_jax.cli.train import parse_flags
from medmamba_jax.errors import NotSavedError

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = config_file(images=40, epochs=4)
FOLDER_CONFIG = """
from configs import image_folder
import plain_block  # adds the model `tiny`

def get_config():
    config = image_folder.get_config("testing")
    config.model.variant = "tiny"
    config.results.report = False
    return config
"""


def command(*arguments):
    return [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]


def run(*arguments, cwd):
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True
    )


def environment():
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "models")))  # for `plain_block`
    return {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""}


MISTAKES = {
    "--config.train.lrr=3": 'Did you mean "lr"',
    "--config.data.group_pattern=(p)": "did you mean --config.data.folder.group_pattern?",
    "--config.train.lr=abc": "could not convert string to float: 'abc'",
    "--config.train.epochs=0": "train.epochs must be a positive integer; got 0",
    "--config.model.variant=xl": "model.variant must be one of medmamba_t",
    "--config.data.image_size=20": "data.image_size is 20x20 px and must be at least 32",
    "--config.train.freeze=nothing": "'nothing' matches no parameter",
    "--config.train.init_from=nowhere": "nowhere",
    "--lr=0.1": "did you mean --config.train.lr?",
    "--config=nowhere.py": "there is no config file nowhere.py; configs/ has bloodmnist, ",
    "--config=configs/imagefolder.py:x": "(did you mean configs/image_folder.py?)",
    f"--config={ROOT}/configs/quickstart.py:huge": "error: sizes are full and testing; got 'huge'",
    f"--config={ROOT}/configs/image_folder.py": "data.path",
    "--mode=evaluate": "holds no run",
    "--config": "--config needs a value",
    f"--workdir={ROOT}/LICENSE/run": f"Not a directory: {ROOT}/LICENSE/run",
    "--input=x.png": "--input is for --mode=predict, which is not given",
    "--output=x": "--output is for --mode=predict and --mode=evaluate: give one of them",
    "--mode=evaluate --resume=1": "--resume is for training, and --mode is evaluate",
    "--seeds=0,1 --resume=previous": "--resume is for a single run: give its --workdir",
    "--seeds=0,x": "--seeds must be numbers such as 0,1,2; got 0,x",
    "--folds=1": "--folds must be 2 or more; got 1",
    "--seeds=0,1 --config.train.seed=0": "leave --config.train.seed out",
    "--folds=3 --config.data.fold=1/3": "trains every fold, and data.fold is '1/3'",
    "--seeds=0,1 --mode=evaluate": "--seeds and --folds are for training",
    "--bogus=1": "Unknown command line flag 'bogus'",
    "extra": "unexpected argument 'extra'",
}


# A process each, most of whose time goes into imports.
FEW = ("--config.train.lrr=3", "--config=nowhere.py")


@pytest.mark.parametrize(
    "argument", [x if x in FEW else pytest.param(x, marks=pytest.mark.nightly) for x in MISTAKES]
)
def test_a_mistake_is_one_line_and_exit_code_2(argument, tmp_path):
    result = run(*re.split(r" (?=--)", argument), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    line = result.stderr.strip().splitlines()
    assert len(line) == 1 and line[0].startswith("error: ") and MISTAKES[argument] in line[0]
    assert "Traceback" not in result.stdout and not list(tmp_path.rglob("run.json"))


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NotSavedError("checkpoint 3 was not saved"), "error: checkpoint 3 was not saved\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl"),
            "error: No space left on device: runs/x/metrics.jsonl; check the path, and free some"
            " space\n",
        ),
    ],
)
def test_a_full_disk_is_one_line_and_exit_code_1(error, told, tmp_path, monkeypatch, capsys):
    def full(run):
        raise error

    monkeypatch.setattr("medmamba_jax.training.start_run", lambda *_, **__: nullcontext())
    monkeypatch.setattr("medmamba_jax.training.fit", full)
    try:
        flags.FLAGS(["main.py", f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path}"])
        with pytest.raises(SystemExit) as end:
            train._main(["main.py"])
    finally:
        flags.FLAGS.unparse_flags()
    assert end.value.code == 1 and capsys.readouterr().err == told


MISTAKES_IN_A_CONFIG_FILE = {
    "1 / 0": "ZeroDivisionError: division by zero",
    'raise OSError("my own")': "OSError: Configuration is not available",
    'raise ValueError("my own")': "ValueError: my own",
    "import not_there": "ModuleNotFoundError: No module named 'not_there'",
    "config.train.lr = undefined": "NameError: name 'undefined' is not defined",
    "config.train.(": "SyntaxError: invalid syntax",
}


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("line", MISTAKES_IN_A_CONFIG_FILE)
def test_an_error_in_a_config_file_names_its_line(line, tmp_path, capsys):
    path = tmp_path / "my.py"
    path.write_text(
        "import medmamba_jax as mm\n\ndef get_config():\n    config = mm.default_config()\n"
        f"    {line}\n    return config\n"
    )
    try:
        with pytest.raises(SystemExit) as end:
            parse_flags(["main.py", f"--config={path}"])
    finally:
        flags.FLAGS.unparse_flags()
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {path}:5: {MISTAKES_IN_A_CONFIG_FILE[line]}")
    assert printed.count("\n") == 1


def run_with_a_part_that_raises(error, cwd, module, name):
    program = f"""if True:
        import runpy, sys
        from medmamba_jax.training import {module}

        def broken_step(*args, **options):
            raise {error}

        {module}.{name} = broken_step
        sys.argv = ["main.py", "--config=tiny.py"]
        runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")
    """
    (cwd / "tiny.py").write_text(CONFIG)
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_an_interrupt_is_one_line(tmp_path):
    result = run_with_a_part_that_raises("KeyboardInterrupt", tmp_path, "loop", "train_epoch")
    assert result.returncode == 130
    assert result.stderr == "interrupted; the same command continues the run in runs/tiny\n"


@pytest.mark.slow
def test_an_error_inside_the_step_keeps_its_traceback(tmp_path):
    error = """ValueError("not the user's mistake")"""
    result = run_with_a_part_that_raises(error, tmp_path, "start", "train_step")
    assert result.returncode == 1, result.stderr
    assert "Traceback" in result.stderr and "in broken_step" in result.stderr
    assert "error: not the user's mistake" not in result.stderr.splitlines()


def test_help_is_about_this_program(tmp_path):
    result = run("--help", cwd=tmp_path)
    assert "--config.<section>.<key>=<value>" in result.stdout
    assert "--workdir" in result.stdout and "<train|evaluate|predict>" in result.stdout


@pytest.mark.slow
def test_folder_of_images_from_training_to_evaluation(tmp_path):
    rng = np.random.default_rng(0)
    for name, level in (("a", 60), ("b", 180)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(level, 20, (40, 50)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "folder.py").write_text(FOLDER_CONFIG)
    config = "--config=folder.py"
    kept = "--config.data.cache_dir=kept"
    trained = run(config, "--config.data.path=images", kept, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "Traceback" not in trained.stderr
    assert "all 40 images can be read, 50x40 px" in trained.stdout
    workdir = tmp_path / "runs" / "folder"
    results = workdir / "results"
    assert len((workdir / "split.csv").read_text().splitlines()) == 1 + 40
    before = {path.name: path.read_text() for path in results.iterdir()}
    assert json.loads(before["test.json"])["num_examples"] == 12

    (tmp_path / "images").rename(tmp_path / "moved")
    wanted = ("--config.data.path=moved", "--config.results.report=True")
    again = run(config, "--mode=evaluate", *wanted, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == str(workdir.resolve() / "report.html")
    assert (results / "test_gallery" / "gallery.json").is_file()
    after = {path.name: path.read_text() for path in results.iterdir() if path.is_file()}
    assert before.keys() == after.keys()
    for name in before:
        if name.endswith(".json"):
            values = [json.loads(x[name]) for x in (before, after)]
            values[0].pop("dataset"), values[1].pop("dataset")  # named after the folder
            assert values[0] == values[1]
        else:
            assert before[name] == after[name]

    asked = ("--mode=predict", "--input=moved", "--output=said.jsonl")
    said = run(config, *asked, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    lines = (tmp_path / "said.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines[:2]] == ["moved/a/0.png", "moved/a/1.png"]
    assert len(lines) == 40

    image = tmp_path / "moved" / "a" / "0.png"
    image.rename(image.with_name("renamed.png"))
    refused = run(config, "--config.data.path=moved", kept, cwd=tmp_path)
    assert refused.returncode == 2 and "images of split" in refused.stderr


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that was never stopped, beside its configuration."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "tiny.py").write_text(CONFIG)
    result = run("--config=tiny.py", "--workdir=straight", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "straight"


def started(cwd, name):
    """Starts a run that is to be stopped; returns its process once it has finished two epochs."""
    (cwd / "tiny.py").write_text(CONFIG)
    process = subprocess.Popen(
        command("--config=tiny.py", f"--workdir={name}"),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    metrics = cwd / name / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def assert_continues(cwd, name, straight):
    resumed = run("--config=tiny.py", f"--workdir={name}", cwd=cwd)
    assert resumed.returncode == 0, resumed.stderr
    for split in ("val", "test"):
        expected, actual = (
            (folder / "results" / f"{split}.json").read_text() for folder in (straight, cwd / name)
        )
        assert actual == expected
    ours, others = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (straight, cwd / name)
    )
    for row, other in zip(ours, others, strict=True):
        for key in ("train/loss", "train/auc", "val/loss", "grad_norm", "update_ratio"):
            assert row[key] == other[key]


@pytest.mark.slow
def test_killed_and_started_again_ends_as_if_never_killed(tmp_path, straight):
    killed = started(tmp_path, "killed")
    killed.send_signal(signal.SIGSTOP)
    refused = run("--config=tiny.py", "--workdir=killed", cwd=tmp_path)
    assert refused.returncode == 2 and "another process is training in" in refused.stderr
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert_continues(tmp_path, "killed", straight)


@pytest.mark.slow
def test_a_signal_saves_a_checkpoint_and_ends_the_run(tmp_path, straight):
    stopped = started(tmp_path, "stopped")
    stopped.send_signal(signal.SIGTERM)
    _, printed = stopped.communicate(timeout=120)
    assert stopped.returncode == 143
    assert re.fullmatch(
        r"stopped by SIGTERM after (step \d of )?epoch \d; the same command continues the run in"
        r" .*/stopped\n",
        printed,
    )
    assert_continues(tmp_path, "stopped", straight)


INTERRUPTED = """
import os, signal, sys, threading
sys.argv[1:] = ["train", "--config=tiny.py"]

class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r}:
            for _ in range({times}):
                os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from medmamba_jax.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("module", ["absl", pytest.param("jax", marks=pytest.mark.slow)])
def test_an_interrupt_while_python_imports_is_one_line(tmp_path, module, times):
    (tmp_path / "tiny.py").write_text(CONFIG)
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(module=module, times=times)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 130
    assert re.fullmatch(r"interrupted.*\n", result.stderr)


CALLBACK = """
import gc, os, signal, sys, time
from medmamba_jax import interrupts

class Module:
    @staticmethod
    def run():
        def interrupt(phase, info):
            gc.callbacks.clear()
            os.kill(os.getpid(), signal.SIGINT)  # Python ignores what is raised in here

        gc.callbacks.append(interrupt)
        gc.collect()
        time.sleep(60)

sys.modules["module"] = Module
sys.exit(interrupts.run_program("module", "run"))
"""


def test_an_interrupt_inside_a_callback_is_not_lost():
    result = subprocess.run(
        [sys.executable, "-c", CALLBACK],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
