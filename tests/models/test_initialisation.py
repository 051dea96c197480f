"""Initial parameters have the distributions that PyTorch draws for the official model."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

import medmamba_jax as mm
from medmamba_jax.models import initializers

DIM, STATES = 192, 16  # half is 96, d is 192, the rank is 6


@pytest.fixture(scope="module")
def tensors():
    """Official names to initial values; three draws of one block, each as large as in T."""
    config = mm.MedMambaConfig(depths=(3, 1), dims=(DIM, 2 * DIM), num_classes=100)
    return mm.to_torch_state_dict(nnx.jit(lambda: mm.MedMamba(config, rngs=nnx.Rngs(5)))())


def draws(tensors, name):
    return np.concatenate([tensors[f"layers.0.blocks.{i}.{name}"].ravel() for i in range(3)])


def assert_normal(x, std):
    """Five standard errors: of the mean std / sqrt(N), of the deviation std / sqrt(2 N)."""
    assert abs(x.mean()) < 5 * std / math.sqrt(x.size)
    assert abs(x.std() / std - 1) < 5 / math.sqrt(2 * x.size)
    assert np.abs(x).max() > 2.5 * std  # not cut off at two deviations


def assert_uniform(x, bound):
    """The largest of N lies within 10 / N of the bound but for odds of exp(-5)."""
    assert np.abs(x).max() <= bound
    assert np.abs(x).max() > bound * (1 - 10 / x.size)
    assert abs(x.mean()) < 5 * bound / math.sqrt(3 * x.size)
    assert abs(x.std() / (bound / math.sqrt(3)) - 1) < 5 / math.sqrt(2 * x.size)


@pytest.mark.parametrize("name", ["in_proj.weight", "out_proj.weight"])
def test_linear_weights_of_the_mixer(tensors, name):
    assert_normal(draws(tensors, f"self_attention.{name}"), 0.02)


@pytest.mark.parametrize("name", ["layers.0.downsample.reduction.weight", "head.weight"])
def test_other_linear_weights(tensors, name):
    assert_normal(tensors[name].ravel(), 0.02)


def test_head_bias_is_zero(tensors):
    assert not tensors["head.bias"].any()


@pytest.mark.parametrize(
    ("name", "fan_out", "fan_in"),
    [
        ("conv33conv33conv11.1", DIM // 2 * 9, DIM // 2 * 9),
        ("conv33conv33conv11.4", DIM // 2 * 9, DIM // 2 * 9),
        ("conv33conv33conv11.7", DIM // 2, DIM // 2),
        # PyTorch's fan_out does not know of groups, its fan_in does.
        ("self_attention.conv2d", DIM * 9, 9),
    ],
)
def test_convolutions(tensors, name, fan_out, fan_in):
    assert_normal(draws(tensors, f"{name}.weight"), math.sqrt(2 / fan_out))
    assert_uniform(draws(tensors, f"{name}.bias"), 1 / math.sqrt(fan_in))


def test_patch_embedding(tensors):
    assert_normal(tensors["patch_embed.proj.weight"].ravel(), math.sqrt(2 / (DIM * 16)))
    assert_uniform(tensors["patch_embed.proj.bias"], 1 / math.sqrt(3 * 16))


def test_scan_projections_keep_the_default_of_linear_layers(tensors):
    assert_uniform(draws(tensors, "self_attention.x_proj_weight"), 1 / math.sqrt(DIM))
    assert_uniform(draws(tensors, "self_attention.dt_projs_weight"), 1 / math.sqrt(6))


def test_step_sizes_are_log_uniform_between_a_thousandth_and_a_tenth(tensors):
    dt = np.logaddexp(draws(tensors, "self_attention.dt_projs_bias").astype(np.float64), 0)
    assert 0.999e-3 <= dt.min() < 1.1e-3
    assert 0.9e-1 < dt.max() <= 1.001e-1
    position = (np.log(dt) - math.log(1e-3)) / math.log(100)
    # Kolmogorov and Smirnov's distance to the uniform distribution; 1.95 is p = 0.001.
    steps = np.arange(1, dt.size + 1) / dt.size
    assert np.abs(np.sort(position) - steps).max() < 1.95 / math.sqrt(dt.size)


def test_decays_and_skips(tensors):
    logs = draws(tensors, "self_attention.A_logs").reshape(-1, STATES)
    np.testing.assert_allclose(np.exp(logs), np.tile(np.arange(1, 17), (len(logs), 1)), rtol=1e-6)
    assert (draws(tensors, "self_attention.Ds") == 1).all()


def test_norms_start_as_identity(tensors):
    for name, x in tensors.items():
        is_norm = x.ndim == 1 and name.endswith(".weight")
        if is_norm or name.endswith("running_var"):
            assert (x == 1).all(), name
        if name.endswith(("running_mean", "num_batches_tracked", "norm.bias", "ln_1.bias")):
            assert (x == 0).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (3, 3, 64, 16)], ids=["small", "large"])
def test_draws_are_those_of_jax(shape):
    key, shape_2d = jax.random.key(3), (shape[0] * shape[1] * shape[2], shape[3])
    kaiming = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    np.testing.assert_allclose(initializers.conv(key, shape), kaiming(key, shape), rtol=1e-6)
    normal = jax.nn.initializers.normal(0.02)
    np.testing.assert_allclose(initializers.linear(key, shape_2d), normal(key, shape_2d), rtol=1e-6)
    uniform = jax.random.uniform(key, shape, minval=-0.3, maxval=0.3)
    drawn = initializers.uniform(0.3)(key, shape)
    np.testing.assert_allclose(drawn, uniform, rtol=1e-6, atol=1e-7)


def test_blocks_directions_and_seeds_differ(tensors):
    blocks = draws(tensors, "self_attention.x_proj_weight").reshape(12, -1)  # 3 blocks, 4 orders
    assert len(np.unique(blocks[:, 0])) == 12

    config = mm.MedMambaConfig(depths=(1,), dims=(4,), num_classes=2, d_state=1)
    drawn = jax.jit(lambda key: mm.MedMamba(config, rngs=nnx.Rngs(key)).head.kernel[...])
    kernels = [drawn(jax.random.key(seed)) for seed in (0, 0, 1)]
    assert jax.numpy.array_equal(kernels[0], kernels[1])
    assert not jax.numpy.array_equal(kernels[0], kernels[2])
