"""Splitting an opaque function by image, with a stand-in for the kernels."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medmamba_jax.ops.pallas_gpu.by_image import by_image

IMAGES, PARAMETERS = 3, 3  # u, packed, step; bias, A, D


def stand_in(mode, u, packed, step, bias, A, D):
    """Mixes all arguments of an image, and of no other image, in a way that shows each."""
    mixed = u * A + packed.sum(-1, keepdims=True) * bias + D
    return mixed + step.sum(tuple(range(1, step.ndim)), keepdims=True), (packed * 2).sum(1)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    images = [(8, 5, 6), (8, 5, 3), (8, 5, 6)]
    shapes = images + [(6,)] * PARAMETERS
    # Small whole numbers: every product and sum is exact, in whatever order XLA takes them.
    return [jnp.asarray(rng.integers(-4, 5, shape), jnp.float32) for shape in shapes]


class Mode(types.SimpleNamespace):
    __hash__ = object.__hash__


MODE = Mode(rank=0, interpret=False)
PROJECTED = Mode(rank=4, interpret=False)  # step is a parameter then
WHOLE = Mode(rank=4, interpret=False, tells=2)


def tells_its_mode(mode, u, *others):
    return u * mode.tells


def test_a_batch_on_several_devices_stays_there(arrays):
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip(f"needs 2 devices, has {len(devices)}")
    mesh = Mesh(np.array(devices[:2]), ("data",))
    placed = [
        jax.device_put(
            x, NamedSharding(mesh, PartitionSpec("data") if i < IMAGES else PartitionSpec())
        )
        for i, x in enumerate(arrays)
    ]
    compiled = jax.jit(by_image(stand_in, MODE)).lower(*placed).compile()
    text = compiled.as_text()
    assert "all-gather" not in text and "all-reduce" not in text
    outputs = compiled(*placed)
    for output, expected in zip(outputs, stand_in(MODE, *arrays), strict=True):
        assert output.sharding.spec[0] == "data"
        np.testing.assert_array_equal(output, expected)


def test_the_mode_for_the_whole_batch_runs_only_if_nothing_is_split():
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip(f"needs 2 devices, has {len(devices)}")
    arrays = [jnp.ones((8, 3)), jnp.ones((8, 3)), *4 * [jnp.ones(3)]]
    run = jax.jit(by_image(tells_its_mode, Mode(rank=4, interpret=False, tells=1), WHOLE))
    mesh = Mesh(np.array(devices[:2]), ("data",))
    split = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("data") if i < 2 else PartitionSpec()))
        for i, x in enumerate(arrays)
    ]
    np.testing.assert_array_equal(run(*split), 1)
    np.testing.assert_array_equal(run(*arrays), WHOLE.tells)


def test_vmap_folds_images_together(arrays):
    split = [x.reshape(2, 4, *x.shape[1:]) if i < IMAGES else x for i, x in enumerate(arrays)]
    axes = (0,) * IMAGES + (None,) * PARAMETERS
    outputs = jax.jit(jax.vmap(by_image(stand_in, MODE), in_axes=axes))(*split)
    for output, expected in zip(outputs, stand_in(MODE, *arrays), strict=True):
        np.testing.assert_array_equal(output.reshape(expected.shape), expected)


def test_vmap_over_parameters_takes_them_one_by_one(arrays):
    several = [*arrays[:4], jnp.stack([arrays[4], 2 * arrays[4]]), arrays[5]]
    axes = (None,) * 4 + (0, None)
    outputs = jax.vmap(by_image(stand_in, MODE), in_axes=axes)(*several)
    for i in range(2):
        expected = stand_in(MODE, *several[:4], several[4][i], several[5])
        for output, wanted in zip(outputs, expected, strict=True):
            np.testing.assert_array_equal(output[i], wanted)


@pytest.mark.parametrize("images", [8, 6])
def test_steps_that_are_parameters_and_uneven_batches(arrays, images):
    devices = jax.devices()
    if len(devices) < 4:
        pytest.skip(f"needs 4 devices, has {len(devices)}")
    mesh = Mesh(np.array(devices[:4]), ("data",))
    u, packed, _, *parameters = arrays
    cut = [u[:images], packed[:images], jnp.ones((3, 6)), *parameters]
    spec = PartitionSpec("data") if images % 4 == 0 else PartitionSpec()
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec if i < 2 else PartitionSpec()))
        for i, x in enumerate(cut)
    ]
    run = jax.jit(by_image(mixes_a_parameter, PROJECTED))
    np.testing.assert_array_equal(run(*placed), mixes_a_parameter(PROJECTED, *cut))


def mixes_a_parameter(mode, u, packed, step, bias, A, D):
    return u * A * step.sum() + packed.sum(-1, keepdims=True) * bias + D
