"""Layers and blocks against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medmamba_jax.models.blocks import SSConvSSM
from medmamba_jax.models.layers import BatchNorm, Conv, drop_path, dropout
from medmamba_jax.models.patch import PatchEmbed, PatchMerging


def test_batch_norm_normalises_by_the_biased_variance_and_collects_the_unbiased():
    x = np.random.default_rng(0).normal(3, 2, (2, 3, 4, 5)).astype(np.float32)
    norm = BatchNorm(5, jnp.float32, nnx.Rngs(0))
    y = norm(x)
    flat = x.reshape(-1, 5).astype(np.float64)
    mean, biased, unbiased = flat.mean(0), flat.var(0), flat.var(0, ddof=1)
    expected = (x - mean) / np.sqrt(biased + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * unbiased, rtol=1e-5)
    assert norm.num_batches_tracked[...] == 1

    norm.eval()
    expected = (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * unbiased + 1e-5)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-5)
    assert norm.num_batches_tracked[...] == 1


def test_batch_norm_of_a_large_mean_keeps_its_variance():
    x = 300 + 0.1 * np.random.default_rng(1).standard_normal((4, 8, 8, 3)).astype(np.float32)
    norm = BatchNorm(3, jnp.float32, nnx.Rngs(0))
    std = np.asarray(norm(x)).reshape(-1, 3).std(0)
    np.testing.assert_allclose(std, 1, rtol=2e-3)


def test_batch_norm_of_one_value_a_channel_is_finite():
    norm = BatchNorm(3, jnp.float32, nnx.Rngs(0))
    np.testing.assert_array_equal(norm(np.full((1, 1, 1, 3), 7.0, np.float32)), 0)
    assert np.isfinite(norm.var[...]).all()


def test_patch_merging_reads_down_the_first_column_first():
    merging = PatchMerging(1, jnp.float32, nnx.Rngs(0))
    merging.norm = lambda x: x
    merging.reduction = lambda x: x
    ramp = jnp.arange(20.0).reshape(1, 4, 5, 1)  # the fifth column is dropped
    merged = merging(ramp)
    assert merged.shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(merged[0, 0, 0], [0, 5, 1, 6])
    np.testing.assert_array_equal(merged[0, 1, 1], [12, 17, 13, 18])


@pytest.mark.parametrize(
    ("side", "patches", "strides", "padding"),
    [(3, False, 1, "SAME"), (1, False, 1, "SAME"), (4, True, 4, "VALID")],
)
def test_a_convolution_is_that_of_flax(side, patches, strides, padding):
    ours = Conv(3, 5, side, jnp.float32, nnx.Rngs(0), patches=patches)
    theirs = nnx.Conv(3, 5, (side, side), strides=strides, padding=padding, rngs=nnx.Rngs(1))
    theirs.kernel[...], theirs.bias[...] = ours.kernel[...], ours.bias[...]
    x = jax.random.normal(jax.random.key(0), (2, 9, 10, 3))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(224, 225), (33, 47)])
def test_patch_embedding_pads_nothing(height, width):
    embed = PatchEmbed(3, 8, 4, jnp.float32, nnx.Rngs(0))
    assert embed(jnp.zeros((1, height, width, 3))).shape == (1, height // 4, width // 4, 8)


def test_channel_shuffle_puts_the_convolved_half_on_even_channels():
    block = make_block(8)
    block.norm0 = block.norm1 = block.norm2 = lambda x: x
    block.conv1 = block.conv2 = block.conv3 = lambda x: x
    block.norm = lambda x: x
    block.ss2d = lambda x, key=None: 10 * x
    x = jnp.arange(1.0, 9.0).reshape(1, 1, 1, 8)
    # left 1..4 passes three ReLUs; right 5..8 is scanned, here times 10
    mixed = np.array([1, 50, 2, 60, 3, 70, 4, 80])
    np.testing.assert_array_equal((block(x, 0.0, None) - x).ravel(), mixed)


def make_block(features):
    return SSConvSSM(
        features,
        d_state=2,
        dt_rank=1,
        drop_rate=0.0,
        dtype=jnp.float32,
        scan_implementation="sequential",
        rngs=nnx.Rngs(0),
    )


@pytest.mark.slow
def test_drop_path_touches_the_scanned_channels_alone():
    block = make_block(8)
    block.eval()
    x = jax.random.normal(jax.random.key(0), (16, 3, 2, 8))
    kept, dropped = block(x, 0.0, None), block(x, 0.9, jax.random.key(1))
    np.testing.assert_array_equal(dropped[..., 0::2], kept[..., 0::2])
    scanned = np.asarray(kept - x)[..., 1::2]
    after = np.asarray(dropped - x)[..., 1::2]
    gone = np.abs(after).max((1, 2, 3)) == 0
    assert 0 < gone.sum() < 16
    np.testing.assert_allclose(after[~gone], 10 * scanned[~gone], rtol=1e-4, atol=1e-4)


def test_drop_path_keeps_whole_images_and_the_mean():
    rate, images = 0.3, 4000
    y = np.asarray(drop_path(jnp.ones((images, 2, 3, 4)), jnp.float32(rate), jax.random.key(0)))
    per_image = y.reshape(images, -1)
    assert (per_image == per_image[:, :1]).all()
    assert set(np.unique(per_image)) == {np.float32(0), np.float32(1 / np.float32(1 - rate))}
    kept = (per_image[:, 0] > 0).mean()
    assert abs(kept - (1 - rate)) < 5 * (rate * (1 - rate) / images) ** 0.5


def test_dropout_drops_elements_and_keeps_the_mean():
    rate = 0.25
    x = jnp.ones((8, 20, 20, 5), jnp.bfloat16)
    y = dropout(x, rate, jax.random.key(0))
    assert y.dtype == jnp.bfloat16
    kept = np.asarray(y > 0, np.float64)
    assert abs(kept.mean() - 0.75) < 5 * (rate * (1 - rate) / kept.size) ** 0.5
    assert 0 < kept[0, 0, 0].mean() < 1 or kept[0, 0].mean() < 1  # not whole images
    np.testing.assert_array_equal(np.unique(y), [0, jnp.bfloat16(1 / 0.75)])
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)
