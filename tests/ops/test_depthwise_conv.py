"""Both forms of the depthwise convolution against loops over pixels and taps in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from medmamba_jax.ops.depthwise_conv import grouped_conv, sum_of_shifts

FORMS = [grouped_conv, sum_of_shifts]


def convolve(x, kernel, dy):
    """Returns y and the gradients of sum(y * dy) for x and the kernel; zeros outside of x."""
    side, (_, h, w, _) = kernel.shape[0], x.shape
    y, dx, dkernel = np.zeros_like(x), np.zeros_like(x), np.zeros_like(kernel)
    for row in range(h):
        for column in range(w):
            for i in range(side):
                for j in range(side):
                    r, c = row + i - side // 2, column + j - side // 2
                    if 0 <= r < h and 0 <= c < w:
                        y[:, row, column] += x[:, r, c] * kernel[i, j, 0]
                        dx[:, r, c] += dy[:, row, column] * kernel[i, j, 0]
                        dkernel[i, j, 0] += (dy[:, row, column] * x[:, r, c]).sum(0)
    return y, dx, dkernel


def make_inputs(side):
    rng = np.random.default_rng(side)
    return [rng.standard_normal(s) for s in [(2, 4, 7, 3), (side, side, 1, 3), (2, 4, 7, 3)]]


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients(form, side):
    x, kernel, dy = make_inputs(side)
    with jax.default_matmul_precision("highest"):
        y, pull = jax.vjp(form, jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
        gradients = pull(jnp.asarray(dy, jnp.float32))
    results = zip((y, *gradients), convolve(x, kernel, dy), ("y", "x", "kernel"), strict=True)
    for actual, expected, name in results:
        assert_close(actual, expected, 1e-6, name)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_rounded_once(form):
    x, kernel, dy = (np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in make_inputs(3))
    y = form(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert_close(y.astype(jnp.float32), convolve(x, kernel, dy)[0], 2.0**-8, "y")
