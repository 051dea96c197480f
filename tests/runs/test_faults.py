"""Folders that are read-only, and files that vanish."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data.build import find_images
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.first_pass import first_pass

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
import medmamba_jax as mm
import plain_block  # adds the model `tiny`

def get_config():
    config = mm.default_config()
    config.model.variant = "tiny"
    config.data.name = "phantom"
    config.data.image_size = 32
    config.data.phantom.images = 40
    config.train.batch_size = 8
    config.train.epochs = 12
    config.results.report = False
    config.results.resamples = 100
    return config
"""
LINE = [sys.executable, str(ROOT / "main.py"), "--config=tiny.py"]


@pytest.fixture
def environment():
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "models")))  # for `plain_block`
    return {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""}


def in_a_namespace(script, environment, cwd):
    """Runs a shell script that may mount file systems, which no other process sees."""
    allowed = subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True, text=True
    )
    if allowed.returncode:
        pytest.skip(f"no file system may be mounted here: {allowed.stderr.strip()}")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-ec", script],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed (Linux)")
def test_a_folder_that_is_read_only_is_one_line(tmp_path, environment):
    (tmp_path / "tiny.py").write_text(CONFIG)
    (tmp_path / "runs").mkdir()
    line = " ".join(map(str, LINE))
    script = f"mount --bind runs runs; mount -o remount,ro,bind runs; {line} --workdir=runs/one"
    result = in_a_namespace(script, environment, tmp_path)
    assert result.returncode == 2, result.stderr
    errors = result.stderr.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: Read-only file system: ")
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("allowed", [False, True])
def test_a_file_that_vanishes_between_listing_and_reading_is_named(tmp_path, allowed):
    for i in range(12):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(path)
    config = DataConfig(
        path=str(tmp_path / "images"),
        image_size=8,
        cache_dir=str(tmp_path / "cache"),
        allow_unreadable=allowed,
    )
    found = find_images(config)
    (tmp_path / "images" / "b" / "3.png").unlink()
    (problem,) = first_pass(found, config.preprocessing(1), config).facts.problems.items()
    assert found.names[problem[0]] == "b/3.png" and "No such file" in problem[1]
