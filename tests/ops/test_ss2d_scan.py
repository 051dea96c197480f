"""The scan of an image against a walk over its pixels in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from image_scan_oracle import K, image_scan_oracle, make_image_inputs, pixel_orders

import medmamba_jax as mm
from medmamba_jax.ops import ss2d_scan as module
from medmamba_jax.ops.scan import api, implementations
from medmamba_jax.ops.ss2d_scan import merge, order

B, H, W, D, R, N = 2, 3, 5, 4, 2, 3


@pytest.fixture
def inputs():
    return make_image_inputs(B, H, W, D, R, N)


def run(inputs):
    inputs = dict(inputs)
    positional = [inputs.pop(name) for name in ("u", "dt", "B", "C")]
    return mm.ss2d_scan(*positional, **inputs)


def test_values_and_gradients(inputs):
    dy = np.random.default_rng(1).standard_normal((B, H, W, D)).astype(np.float32)

    @jax.jit
    def both(inputs, dy):
        y, pull = jax.vjp(run, inputs)
        return y, pull(dy)[0]

    with jax.default_matmul_precision("highest"):
        y, gradients = both(inputs, dy)
    expected, gradients_expected = image_scan_oracle(inputs, dy.astype(np.float64))
    assert_close(y, expected, 1e-5, "y")
    for name, gradient in gradients_expected.items():
        assert_close(gradients[name], gradient, 1e-5, name)


def test_orders_are_those_of_the_pixels():
    names = np.arange(H * W).reshape(1, H, W, 1, 1)
    sequences = order(jnp.asarray(np.broadcast_to(names, (1, H, W, K, 1))))
    for k, pixels in enumerate(pixel_orders(H, W)):
        np.testing.assert_array_equal(sequences[0, :, k, 0], [i * W + j for i, j in pixels])


def test_merging_undoes_ordering():
    x = np.random.default_rng(2).integers(-9, 9, (2, H, W, K, 3)).astype(np.float32)
    np.testing.assert_array_equal(merge(order(jnp.asarray(x)), H, W), x.sum(3))


def test_the_result_has_the_dtype_of_the_image(inputs):
    expected = jax.jit(run)(inputs)
    half = {name: inputs[name].astype(jnp.bfloat16) for name in ("u", "dt", "B", "C")}
    y = jax.jit(run)({**inputs, **half})
    assert y.dtype == jnp.bfloat16
    # Four inputs and the result are rounded, each by 2**-9 of a value; twice the sum is allowed.
    assert_close(y.astype(jnp.float32), expected, 2 * 5 * 2.0**-9, "y")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("u", (B, H, W)),
        ("dt", (B, H, W, K)),
        ("dt", (B, H, W, 1, R)),
        ("B", (B, H, W, K, N + 1)),
        ("C", (B, W, H, K, N)),
        ("dt_weight", (K, D, R)),
        ("dt_bias", (D,)),
        ("A", (K, D)),
        ("D", (K, 1)),
    ],
)
def test_misshapen_arguments_are_named(inputs, name, shape):
    with pytest.raises(ValueError, match=rf"^{name} must "):
        run({**inputs, name: jnp.zeros(shape)})


def test_arguments_are_checked_and_the_choice_is_logged_once(inputs, monkeypatch):
    """Also where no kernel takes the image and its four sequences are scanned."""
    calls = []

    def count(owner, name):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    for owner in (api, module):
        count(owner, "check_are_arrays")
        count(owner, "check_arrays")
    count(implementations, "choose")
    count(implementations.logging, "info")
    implementations.log_choice.cache_clear()
    jax.eval_shape(lambda x: run(x), inputs)  # of a new function, which no test has traced
    assert sorted(calls) == ["check_are_arrays", "check_arrays", "choose", "info"]
