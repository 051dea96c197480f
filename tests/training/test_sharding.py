"""A state that the devices share, on eight CPU devices."""

import json

import jax
import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax import parallel as parallel_module
from medmamba_jax.parallel import DataParallel


@pytest.fixture(autouse=True)
def eight_devices(monkeypatch):
    """Gives back all devices, and lets them share arrays as small as those of `tiny`."""
    monkeypatch.undo()
    monkeypatch.setattr(parallel_module, "SMALLEST_SHARDED", 64)
    return jax.devices()


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, np.float32)


def test_the_longest_axis_that_can_be_split_is_split(eight_devices):
    parallel = DataParallel(tuple(eight_devices))
    shapes = {
        "longest": shape(8, 24, 16),
        "can be split": shape(30, 16),
        "small": shape(8, 7),
        "odd": shape(9, 15),
    }
    specs = {k: v.spec for k, v in parallel.of_state(shapes, sharded=True).items()}
    assert specs == {
        "longest": jax.P(None, "data"),
        "can be split": jax.P(None, "data"),
        "small": jax.P(),
        "odd": jax.P(),
    }
    replicated = parallel.of_state(shapes).values()
    assert all(sharding.is_fully_replicated for sharding in replicated)
    alone = DataParallel(tuple(eight_devices[:1])).of_state(shapes, sharded=True).values()
    assert all(sharding.is_fully_replicated for sharding in alone)


@pytest.fixture(scope="module")
def runs(config, images, tmp_path_factory):
    """Folder of two runs on eight devices, which hold all of the state each, or share it."""
    folder = tmp_path_factory.mktemp("sharding")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(parallel_module, "SMALLEST_SHARDED", 64)
        for name, changes in (("replicated", {}), ("sharded", {"shard_state": True})):
            mm.train(config(ema_decay=0.9, clip_norm=1.0, **changes), folder / name, images)
    return folder


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_shared_state_trains_as_one_on_every_device(runs):
    replicated, sharded = (rows(runs / name) for name in ("replicated", "sharded"))
    assert len(replicated) == len(sharded) == 2
    for one, other in zip(replicated, sharded, strict=True):
        for name in ("train/loss", "val/loss", "grad_norm"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5)
    assert replicated[0]["train/loss"] != replicated[1]["train/loss"]


def bits(state):
    """Returns the arrays of a state on the host, with keys as integers."""

    def plain(x):
        return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.device_get(jax.tree.map(plain, state.to_parts()))


def state_of(config, folder, images, devices, **changes):
    """Restores the state of a run on so many devices, which share it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(jax, "devices", lambda *_: devices)
        with mm.start_run(config(ema_decay=0.9, clip_norm=1.0, **changes), folder, images) as run:
            return run.state


@pytest.mark.slow
def test_a_shared_state_is_restored_on_any_number_of_devices(
    config, images, runs, eight_devices, tmp_path
):
    states = [
        state_of(config, runs / "sharded", images, eight_devices[:count], shard_state=sharded)
        for count, sharded in ((8, True), (1, True), (2, True), (8, False))
    ]
    kernel = states[0].params["merges"][0]["reduction"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    adam = jax.tree.leaves(states[0].opt_state)
    assert sum(not x.sharding.is_fully_replicated for x in adam) > 2
    assert not states[0].average["params"]["merges"][0]["reduction"]["kernel"].is_fully_replicated
    first, *others = map(bits, states)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)

    # The reverse: what one device saves, eight share.
    mm.train(config(epochs=1, ema_decay=0.9, clip_norm=1.0), tmp_path / "one", images)
    changes = {"epochs": 1}
    one, eight = (
        state_of(config, tmp_path / "one", images, devices, shard_state=len(devices) > 1, **changes)
        for devices in (eight_devices[:1], eight_devices)
    )
    jax.tree.map(np.testing.assert_array_equal, bits(one), bits(eight))


@pytest.mark.slow
def test_a_device_holds_its_share_and_the_step_keeps_it(config, images, eight_devices, tmp_path):
    built = config(ema_decay=0.9, shard_state=True)
    with mm.start_run(built, tmp_path / "run", images) as run:
        leaves = jax.tree.leaves(run.state)
        share = sum(x.nbytes // (8 if not x.sharding.is_fully_replicated else 1) for x in leaves)
        held = sum(x.addressable_shards[0].data.nbytes for x in leaves)
        batch = 32 * 32 * 3 + 4  # an image and its label
        compiled = run.train_step
        arguments = compiled.memory_analysis().argument_size_in_bytes
    assert held == share < sum(x.nbytes for x in leaves) / 3
    assert share + batch - 16 <= arguments <= share + batch  # without the seed, which is not read
    # The gradients are summed where they are kept, and parameters are gathered for the model.
    program = compiled.as_text()
    assert "all-gather" in program and "all-to-all" not in program
