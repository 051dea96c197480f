"""A tiny experiment on tiny images, and one device unless a test wants more."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import medmamba_jax as mm


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Runs on the first device; `monkeypatch.undo()` gives the others back."""
    use_one_device(monkeypatch)


def use_one_device(monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)


@pytest.fixture(scope="session")
def images():
    """Two classes that differ in brightness; 20 train, 10 val and 9 test images of 32 px."""
    rng = np.random.default_rng(0)

    def split(n):
        labels = np.arange(n) % 2
        base = 90 + 70 * labels[:, None, None]
        pixels = np.clip(base + rng.normal(0, 40, (n, 32, 32)), 0, 255)
        return mm.InMemorySplit(pixels.astype(np.uint8), labels)

    splits = {"train": split(20), "val": split(10), "test": split(9)}
    return mm.Dataset("blobs", "random blobs", ("dark", "bright"), splits, synthetic=True)


@pytest.fixture(scope="session")
def marked_images():
    """As many images with any of two marks, a bright left and a bright right; some not known."""
    rng = np.random.default_rng(0)

    def split(n):
        marks = np.stack([np.arange(n) % 2, np.arange(n) // 2 % 2], axis=1).astype(np.float32)
        pixels = 90 + 70 * np.repeat(marks, 16, axis=1)[:, None, :] + rng.normal(0, 40, (n, 32, 32))
        marks[::5, 0] = marks[1::5, 1] = np.nan
        return mm.InMemorySplit(np.clip(pixels, 0, 255).astype(np.uint8), marks)

    splits = {"train": split(20), "val": split(10), "test": split(9)}
    return mm.Dataset("marks", "random marks", ("left", "right"), splits, True, "multilabel")


@pytest.fixture(scope="session")
def experiment():
    """Returns a function (**train settings) -> a small experiment."""

    def experiment(**changes):
        config = mm.default_config()
        config.model.variant = "medmamba_nano"
        config.data.image_size = 32
        config.train.update(epochs=2, batch_size=8, lr=1e-3)
        built = mm.Experiment.from_config_dict(config)
        return dataclasses.replace(built, train=dataclasses.replace(built.train, **changes))

    return experiment


@pytest.fixture(scope="session")
def trained(experiment, images, tmp_path_factory):
    """Workdir and results of `experiment(epochs=2)` on `images`; to be read only."""
    workdir = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_one_device(monkeypatch)
        results = mm.train(experiment(epochs=2), workdir, images)
    return workdir, results


@pytest.fixture
def run_of_two_epochs(trained, tmp_path):
    """A workdir of one's own that holds the trained run."""
    return shutil.copytree(trained[0], tmp_path / "run")
