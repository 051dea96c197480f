"""Every command of docs/guide.md runs, in the order of the page, on a small folder of images."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from medmamba_jax import cli

ROOT = pathlib.Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "guide.md").read_text()
COMMANDS = [
    shlex.split(line.replace("\\\n", " "))
    for line in re.findall(r"^    ((?:medmamba|python) (?:.*\\\n)*.*)$", GUIDE, re.MULTILINE)
]
# Flags that shrink a training; they stand behind those of the page, and so they win.
SMALL = [
    "--config.data.image_size=32",
    "--config.train.epochs=1",
    "--config.train.batch_size=8",
    "--config.results.resamples=50",
]
# The first run is exported to files whose names only the blocks of MedMamba have.
MODELS = iter(("tiny_mamba", "tiny"))
PROGRAM = """
import sys
import plain_block  # the models `tiny` and `tiny_mamba`
from medmamba_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def train(arguments):
    """Trains in a process of its own, because flags are read once in a process."""
    paths = [str(ROOT), str(ROOT / "tests" / "models")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "train", *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"


def write_images(folder, count, seed):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    level = 180 if folder.name == "PNEUMONIA" else 60
    prefix = "person" if folder.name == "PNEUMONIA" else "IM-"
    for i in range(count):
        pixels = np.clip(rng.normal(level, 60, (40, 50)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{prefix}{seed}{i}_1.png")


def test_the_page_has_the_commands_of_every_step():
    names = {command[1] for command in COMMANDS}
    steps = {
        "inspect",
        "main.py",
        "report",
        "evaluate",
        "summarize",
        "explain",
        "predict",
        "export",
    }
    assert steps <= names


@pytest.mark.nightly
def test_every_command_of_the_page_runs(tmp_path, monkeypatch, one_device, capsys):
    for place, seed in (("my_images", 1), ("other_clinic", 2)):
        for name in ("NORMAL", "PNEUMONIA"):
            write_images(tmp_path / place / name, 20 if place == "my_images" else 4, seed)
    write_images(tmp_path / "new_images", 3, 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for command in COMMANDS:
        if command[0] == "python":
            assert command[1] == "main.py"
            arguments = [*command[2:], *SMALL, f"--config.model.variant={next(MODELS)}"]
            train(arguments)
        else:
            code = cli.main(command[1:])
            assert code == 0, f"{shlex.join(command)}\n{capsys.readouterr()}"
    for path in (
        *("my_images_inspected", "runs/xray/report.html", "runs/xray/model_card.md"),
        *("runs/xray/figures", "runs/xray/evaluations/other_clinic/results.json"),
        *("runs/seeds/summary.json", "maps/sheet.png", "predictions.csv", "xray.stablehlo"),
    ):
        assert (tmp_path / path).exists(), path
