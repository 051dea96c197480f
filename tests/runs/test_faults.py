"""Disks that fill, folders that are read-only, and files that vanish."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from plain_block import config_file

from medmamba_jax.data.build import find_images
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.first_pass import first_pass

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = config_file(images=40, epochs=12)
LINE = [sys.executable, str(ROOT / "main.py"), "--config=tiny.py"]
MEASURED = ("images_per_second", "data_wait", "seconds", "memory")  # differ from run to run


@pytest.fixture
def environment():
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "models")))  # for `plain_block`
    return {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""}


def lines_of(workdir):
    """What metrics.jsonl says, without what is measured by a clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not any(word in key for word in MEASURED)}
        for line in lines
    ]


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
def test_a_disk_that_fills_leaves_what_is_whole(tmp_path, environment):
    """The run goes on from the last whole checkpoint when there is space again."""
    (tmp_path / "tiny.py").write_text(CONFIG)
    line = " ".join(map(str, LINE))
    script = f"""
        mkdir small; mount -t tmpfs -o size=1500k tmpfs small
        ({line} --workdir=small/run || echo "rc $?") 2>&1 | tail -n 40
        find small/run/checkpoints -name '*tmp*' | sed 's/^/left: /'
        mount -o remount,size=200m small
        {line} --workdir=small/run > /dev/null
        cp -r small/run run
    """
    result = in_a_namespace(script, environment, tmp_path)
    assert result.returncode == 0, result.stderr + result.stdout
    (told,) = [line for line in result.stdout.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: checkpoint \S+ was not saved in \S+: it needs up to", told)
    assert "rc 1" in result.stdout
    assert "Traceback" not in result.stdout and "left:" not in result.stdout
    straight = subprocess.run(
        [*LINE, "--workdir=straight"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert straight.returncode == 0
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "straight")


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
