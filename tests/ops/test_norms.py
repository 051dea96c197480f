"""The norms and their gradients against the definition, in float64, and against their own dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from medmamba_jax.ops import norms

EPSILON = 1e-3


def definition(x, axes, scale, bias):
    deviation = x - x.mean(axes, keepdims=True)
    return (
        deviation / jnp.sqrt(jnp.square(deviation).mean(axes, keepdims=True) + EPSILON) * scale
        + bias
    )


def batch_norm(relu, x, scale, bias):
    return norms.batch_norm(x, scale, bias, epsilon=EPSILON, relu=relu)[0]


def plain_batch_norm(relu, x, scale, bias):
    y = definition(x, (0, 1, 2), scale, bias)
    return jnp.maximum(y, 0) if relu else y


def layer_norm(gated, x, scale, bias, gate):
    return norms.layer_norm(x, scale, bias, gate if gated else None, epsilon=EPSILON)


def plain_layer_norm(gated, x, scale, bias, gate):
    y = definition(x, -1, scale, bias)
    return y * gate / (1 + jnp.exp(-gate)) if gated else y


def arrays(*, channels=7, dtype=np.float64):
    """x, scale, bias and gate. Of the 96 pixels 16 share a row of the sums if channels are few."""
    rng = np.random.default_rng(channels)
    shape = (4, 4, 6, channels)
    x, gate = rng.normal(2, 3, shape).astype(dtype), rng.normal(0, 2, shape).astype(dtype)
    return x, rng.normal(1, 0.3, channels), rng.normal(0, 0.3, channels), gate


def with_gradients(norm, option, dy, *inputs):
    y, pull = jax.vjp(functools.partial(norm, option), *inputs)
    return y, pull(dy)


CASES = {
    "batch norm": (batch_norm, plain_batch_norm, False, 3),
    "batch norm and ReLU": (batch_norm, plain_batch_norm, True, 3),
    "layer norm": (layer_norm, plain_layer_norm, False, 4),
    "gated layer norm": (layer_norm, plain_layer_norm, True, 4),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("channels", [7, 130])
def test_a_norm_and_its_gradients_follow_the_definition(case, channels):
    ours, plain, option, count = case
    with jax.enable_x64(True):
        inputs = [jnp.asarray(x) for x in arrays(channels=channels)[:count]]
        dy = jnp.asarray(np.random.default_rng(1).standard_normal(inputs[0].shape))
        (y, gradients), (expected, expected_gradients) = (
            jax.jit(functools.partial(with_gradients, norm, option))(dy, *inputs)
            for norm in (ours, plain)
        )
        assert y.dtype == jnp.float64
        assert_close(y, expected, 1e-13, "y")
        for i, (gradient, wanted) in enumerate(zip(gradients, expected_gradients, strict=True)):
            assert_close(gradient, wanted, 1e-12, f"gradient of argument {i}")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bfloat16_is_rounded_once_and_its_sums_are_float32(case):
    ours, plain, option, count = case
    x, scale, bias, gate = arrays(dtype=jnp.bfloat16)
    inputs = [x, scale.astype(np.float32), bias.astype(np.float32), gate][:count]
    dy = np.random.default_rng(1).standard_normal(x.shape).astype(jnp.bfloat16)
    y, gradients = jax.jit(functools.partial(with_gradients, ours, option))(dy, *inputs)
    assert y.dtype == jnp.bfloat16
    assert [g.dtype for g in gradients] == [x.dtype for x in inputs]
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x, np.float64)) for x in (dy, *inputs)]
        expected, wanted = jax.jit(functools.partial(with_gradients, plain, option))(*exact)
    assert_close(y, expected, 2.0**-8, "y")
    for i, gradient in enumerate(gradients):
        # Behind a gate, the norm's gradient is rounded once more.
        narrow = gradient.dtype == jnp.bfloat16 or (option and ours is layer_norm)
        assert_close(gradient, wanted[i], 2 * 2.0**-8 if narrow else 1e-5, f"argument {i}")


def test_no_gradient_flows_through_the_statistics():
    x, scale, bias, _ = (jnp.asarray(a, jnp.float32) for a in arrays())

    def statistics(x):
        _, mean, var = norms.batch_norm(x, scale, bias, epsilon=EPSILON, relu=False)
        return mean.sum() + var.sum()

    np.testing.assert_array_equal(jax.grad(statistics)(x), 0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_sharded_batch_is_not_gathered(case):
    """7 x 7 pixels are no multiple of the pixels that share a row in the sums."""
    ours, _, option, count = case
    rng = np.random.default_rng(0)
    shape = (8, 7, 7, 48)
    inputs = [rng.standard_normal(s, np.float32) for s in (shape, (48,), (48,), shape)][:count]
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:4]), "images")

    def place(x):
        spec = jax.sharding.PartitionSpec("images" if x.ndim == 4 else None)
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

    def loss(dy, *x):
        return (ours(option, *x) * dy).sum()

    gradient = jax.jit(jax.grad(loss, tuple(range(1, count + 1))))
    inputs.insert(0, rng.standard_normal(shape, np.float32))
    placed = [place(x) for x in inputs]
    assert "all-gather" not in gradient.lower(*placed).compile().as_text()
    for one, four in zip(gradient(*inputs), gradient(*placed), strict=True):
        assert_close(four, one, 1e-5, "a gradient")


def test_relu_of_exactly_0_has_the_gradient_0_as_in_pytorch():
    x, _, _, _ = (jnp.asarray(a, jnp.float32) for a in arrays())
    zeros = jnp.zeros(x.shape[-1])
    gradients = jax.grad(lambda *a: batch_norm(True, *a).sum(), (0, 1, 2))(x, zeros, zeros)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_norms_can_be_mapped_and_computed_again(case):
    ours, _, option, count = case
    inputs = [jnp.asarray(x, jnp.float32) for x in arrays()[:count]]

    def loss(*x):
        return (ours(option, *x) ** 2).sum()

    gradient = jax.grad(loss)
    expected = gradient(*inputs)
    again = jax.grad(jax.checkpoint(loss))(*inputs)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)
    twice = jax.vmap(gradient)(*(jnp.stack([x, x]) for x in inputs))
    np.testing.assert_allclose(twice, jnp.stack([expected, expected]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_empty_batch_has_gradients_of_zero(case):
    ours, _, option, count = case
    x, scale, bias, gate = (jnp.asarray(a, jnp.float32) for a in arrays())
    inputs = [x[:0], scale, bias, gate[:0]][:count]
    gradient = jax.grad(lambda *a: ours(option, *a).sum(), tuple(range(count)))
    gradients = jax.jit(gradient)(*inputs)
    for gradient, given in zip(gradients, inputs, strict=True):
        np.testing.assert_array_equal(gradient, np.zeros(given.shape))
