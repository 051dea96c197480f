"""Official state_dicts in and out of a model."""

import jax
import numpy as np
import pytest
from flax import nnx

import medmamba_jax as mm
from medmamba_jax.errors import UserError


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_round_trip_is_bit_exact_and_in_official_order(model, state_dict):
    mm.load_torch_state_dict(model, state_dict)
    assert_same(mm.to_torch_state_dict(model), state_dict)


def test_counters_are_int32_inside_and_must_fit(model, state_dict):
    mm.load_torch_state_dict(model, state_dict)
    statistics = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    counters = [x for path, x in statistics if path[-1] == "num_batches_tracked"]
    assert counters and all(x.dtype == np.int32 for x in counters)

    before = mm.to_torch_state_dict(model)
    name = next(name for name in state_dict if name.endswith("num_batches_tracked"))
    with pytest.raises(UserError, match="num_batches_tracked = 2147483648"):
        mm.load_torch_state_dict(model, {**state_dict, name: np.array(2**31)})
    assert_same(mm.to_torch_state_dict(model), before)


def test_loading_is_in_place(model, state_dict):
    old_head = model.head.kernel
    mm.load_torch_state_dict(model, state_dict)
    assert model.head.kernel is old_head
    np.testing.assert_array_equal(old_head[...], state_dict["head.weight"].T)


def test_loaded_models_are_bound_to_devices_no_more_than_new_ones(model, state_dict):
    # Otherwise a training step compiles twice: for what is loaded, and for what it returns.
    mm.load_torch_state_dict(model, state_dict)
    assert not any(x.committed for x in jax.tree.leaves(nnx.state(model)))


def test_sharding_survives_loading(model, state_dict):
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip(f"needs 2 devices, has {len(devices)}")
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    nnx.update(model, jax.device_put(nnx.state(model), everywhere))
    mm.load_torch_state_dict(model, state_dict)
    assert all(x.sharding == everywhere for x in jax.tree.leaves(nnx.state(model)))
    assert_same(mm.to_torch_state_dict(model), state_dict)


def test_every_misfit_is_listed_and_the_model_unchanged(model, state_dict):
    before = mm.to_torch_state_dict(model)
    del state_dict["head.bias"], state_dict["patch_embed.norm.weight"]
    state_dict["head.weight"] = np.zeros((7, 16), np.float32)
    state_dict["layers.0.blocks.0.self_attention.Ds"] = np.zeros((4, 8), np.float32)
    state_dict["norm.weight"] = np.zeros(16, np.float32)
    state_dict["layers.1.blocks.2.ln_1.bias"] = np.zeros(8, np.float32)
    with pytest.raises(UserError) as caught:
        mm.load_torch_state_dict(model, state_dict)
    message = str(caught.value)
    for problem in (
        "missing: head.bias (5,)",
        "missing: patch_embed.norm.weight (8,)",
        "unexpected: norm.weight (16,)",
        "unexpected: layers.1.blocks.2.ln_1.bias (8,)",
        "misshapen: head.weight is (7, 16), the model has (5, 16)",
        "misshapen: layers.0.blocks.0.self_attention.Ds is (4, 8), the model has (32,)",
    ):
        assert problem in message
    assert message.count("\n") == 6
    assert_same(mm.to_torch_state_dict(model), before)


def test_half_precision_weights_become_float32(model, state_dict):
    half = {k: x.astype(np.float16) if x.ndim else x for k, x in state_dict.items()}
    mm.load_torch_state_dict(model, half)
    assert_same(
        mm.to_torch_state_dict(model),
        {k: x.astype(np.float32) if x.ndim else x for k, x in half.items()},
    )
