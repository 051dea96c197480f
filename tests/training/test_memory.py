"""A run takes no more memory with every epoch, and compiles nothing after the first."""

import jax
import numpy as np
import psutil
import pytest

import medmamba_jax as mm

EVENT = "/jax/core/compile/backend_compile_duration"


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_epoch(
    config, images, tmp_path, one_device, monkeypatch
):
    """An epoch includes a validation."""
    compiled, by_epoch = [], []

    def listener(event, seconds, **more):
        if event == EVENT:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    from medmamba_jax.training import loop

    train_epoch = loop.train_epoch

    def counted(*arguments, **options):
        by_epoch.append(len(compiled))
        return train_epoch(*arguments, **options)

    monkeypatch.setattr(loop, "train_epoch", counted)
    try:
        mm.train(config(epochs=3), tmp_path / "run", images)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert len(by_epoch) == 3
    first, second, third = by_epoch
    assert first > 0  # the programs of the step are compiled before the first epoch
    assert third == second


@pytest.mark.nightly
def test_memory_stays_flat_from_the_second_epoch_on(config, tmp_path, one_device, monkeypatch):
    rng = np.random.default_rng(0)

    def split(count):
        labels = np.arange(count) % 2
        pixels = rng.integers(0, 256, (count, 64, 64), np.uint8)
        return mm.LabelledImages(pixels, labels, ("a", "b"), name="noise", synthetic=True)

    data = mm.Dataset({"train": split(5000), "val": split(200), "test": split(200)})
    process, sizes = psutil.Process(), []
    from medmamba_jax.training import loop

    train_epoch = loop.train_epoch

    def measured(*arguments, **options):
        done = train_epoch(*arguments, **options)
        sizes.append(process.memory_info().rss)
        return done

    monkeypatch.setattr(loop, "train_epoch", measured)
    mm.train(config(epochs=5, batch_size=50), tmp_path / "run", data)
    assert len(sizes) == 5
    assert max(sizes[2:]) - sizes[1] < 16 * 2**20, [size / 2**20 for size in sizes]
