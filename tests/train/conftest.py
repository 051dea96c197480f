"""A tiny experiment on tiny images, and one device unless a test wants more."""

import dataclasses

import jax
import numpy as np
import pytest

import medmamba_jax as mm


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiles each step once for all tests, as a user's second run of an experiment would."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Runs on the first device; `monkeypatch.undo()` gives the others back."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)


@pytest.fixture
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


@pytest.fixture
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
