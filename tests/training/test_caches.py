"""Caches on disk are written while a run is set up; nothing is trained."""

import dataclasses
import resource

import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax.training import prepare_evaluation, prepare_training


@pytest.fixture
def on_disk(experiment, tmp_path):
    built = experiment()
    data = dataclasses.replace(built.data, cache="disk", cache_dir=str(tmp_path / "cache"))
    return dataclasses.replace(built, data=data)


@pytest.fixture
def changes(tmp_path):
    return {"data.cache": "disk", "data.cache_dir": str(tmp_path / "cache")}


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
    setup = prepare_training(on_disk, tmp_path / "run", images)
    written = {path: path.stat().st_mtime_ns for path in caches(tmp_path)}
    assert len(written) == 3
    for split in setup.dataset.splits.values():
        split[0]
    assert written == {path: path.stat().st_mtime_ns for path in caches(tmp_path)}


def test_a_full_disk_stops_training_before_it_starts(on_disk, images, tmp_path, full_disk):
    with pytest.raises(OSError, match=r"cache \(write.* too large\): make room, or set") as error:
        prepare_training(on_disk, tmp_path / "run", images)
    assert error.value.errno is None  # the message is whole, and main.py prints it
    assert not caches(tmp_path)


def test_images_that_do_not_pass_the_audit_are_not_cached(on_disk, images, tmp_path):
    shared = images.splits["val"]
    splits = {**images.splits, "test": shared}
    with pytest.raises(ValueError, match="the same pixels are in more than one split"):
        prepare_training(
            on_disk, tmp_path / "run", dataclasses.replace(images, splits=splits, synthetic=False)
        )
    assert not caches(tmp_path)


def test_evaluation_writes_those_that_it_reads(images, trained, changes, tmp_path):
    prepare_evaluation(trained[0], images, changes)
    assert len(caches(tmp_path)) == 2


def test_a_full_disk_stops_evaluation(images, trained, changes, full_disk):
    with pytest.raises(OSError, match="cannot write the cache"):
        prepare_evaluation(trained[0], images, changes)


def test_an_image_that_cannot_be_read_stops_evaluation(images, trained, changes):
    damaged = mm.InMemorySplit([*np.zeros((3, 32, 32), np.uint8), b"damaged"], [0, 1, 0, 1])
    splits = {**images.splits, "test": damaged}
    with pytest.raises(ValueError, match="image 3: not an image"):
        prepare_evaluation(trained[0], dataclasses.replace(images, splits=splits), changes)
