"""Caches on disk are written while a run starts; nothing is trained."""

import dataclasses
import resource

import pytest

import medmamba_jax as mm


@pytest.fixture
def on_disk(config, tmp_path):
    built = config()
    data = dataclasses.replace(built.data, cache="disk", cache_dir=str(tmp_path / "cache"))
    return dataclasses.replace(built, data=data)


def caches(folder):
    return list((folder / "cache").glob("*.*"))


@pytest.fixture
def full_disk():
    """No file may grow beyond 15 kB; a cache of five images of these tests would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_training_finds_them_written(on_disk, images, tmp_path):
    with mm.start_run(on_disk, tmp_path / "run", images) as run:
        splits = run.dataset.splits
    written = {path: path.stat().st_mtime_ns for path in caches(tmp_path)}
    assert len(written) == 1  # one file for all splits
    for split in splits.values():
        split.read(0)
    assert written == {path: path.stat().st_mtime_ns for path in caches(tmp_path)}


def test_a_full_disk_stops_training_before_it_starts(on_disk, images, tmp_path, full_disk):
    with pytest.raises(OSError, match=r"cache \(File too large\): make room, or set") as error:
        mm.start_run(on_disk, tmp_path / "run", images)
    assert error.value.errno is None  # the message is whole, and main.py prints it
    assert not caches(tmp_path)
