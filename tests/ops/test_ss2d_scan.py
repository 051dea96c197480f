"""The scan of an image against a walk over its pixels in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from scan_oracle import scan_oracle

import medmamba_jax as mm
from medmamba_jax.ops.ss2d_scan import merge, order

B, H, W, D, R, N, K = 2, 3, 5, 4, 2, 3, 4


def pixel_orders(h, w):
    """The four orders as lists of (row, column)."""
    rows = [(i, j) for i in range(h) for j in range(w)]
    columns = [(i, j) for j in range(w) for i in range(h)]
    return [rows, columns, rows[::-1], columns[::-1]]


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    arrays = {
        "u": rng.standard_normal((B, H, W, D)),
        "dt": rng.standard_normal((B, H, W, K, R)),
        "B": rng.standard_normal((B, H, W, K, N)),
        "C": rng.standard_normal((B, H, W, K, N)),
        "dt_weight": rng.standard_normal((K, R, D)),
        "dt_bias": rng.uniform(-4, -1, (K, D)),
        "A": -np.exp(0.3 * rng.standard_normal((K, D, N))),
        "D": rng.standard_normal((K, D)),
    }
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


def run(inputs):
    inputs = dict(inputs)
    positional = [inputs.pop(name) for name in ("u", "dt", "B", "C")]
    return mm.ss2d_scan(*positional, **inputs)


def walk(inputs, dy):
    """Returns y and the gradients of sum(y * dy), pixel by pixel in each order."""
    x = {name: np.asarray(array, np.float64) for name, array in inputs.items()}
    y = np.zeros_like(x["u"])
    gradients = {name: np.zeros_like(array) for name, array in x.items()}
    for k, pixels in enumerate(pixel_orders(H, W)):
        rows, columns = np.array(pixels).T

        def sequence(array, rows=rows, columns=columns):
            return array[:, rows, columns][:, :, None]

        low_rank = x["dt"][:, rows, columns, k]
        y_k, grad_k = scan_oracle(
            u=sequence(x["u"]),
            delta=(low_rank @ x["dt_weight"][k])[:, :, None],
            A=x["A"][k : k + 1],
            B=sequence(x["B"][..., k, :]),
            C=sequence(x["C"][..., k, :]),
            D=x["D"][k : k + 1],
            delta_bias=x["dt_bias"][k : k + 1],
            delta_softplus=True,
            dy=sequence(dy),
        )
        y[:, rows, columns] += y_k[:, :, 0]
        gradients["u"][:, rows, columns] += grad_k["u"][:, :, 0]
        gradients["B"][:, rows, columns, k] = grad_k["B"][:, :, 0]
        gradients["C"][:, rows, columns, k] = grad_k["C"][:, :, 0]
        d_delta = grad_k["delta"][:, :, 0]
        gradients["dt"][:, rows, columns, k] = d_delta @ x["dt_weight"][k].T
        gradients["dt_weight"][k] = np.einsum("blr,bld->rd", low_rank, d_delta)
        gradients["dt_bias"][k] = grad_k["delta_bias"][0]
        gradients["A"][k] = grad_k["A"][0]
        gradients["D"][k] = grad_k["D"][0]
    return y, gradients


def test_values_and_gradients(inputs):
    dy = np.random.default_rng(1).standard_normal((B, H, W, D)).astype(np.float32)

    @jax.jit
    def both(inputs, dy):
        y, pull = jax.vjp(run, inputs)
        return y, pull(dy)[0]

    with jax.default_matmul_precision("highest"):
        y, gradients = both(inputs, dy)
    expected, gradients_expected = walk(inputs, dy.astype(np.float64))
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
    expected = run(inputs)
    half = {name: inputs[name].astype(jnp.bfloat16) for name in ("u", "dt", "B", "C")}
    y = run({**inputs, **half})
    assert y.dtype == jnp.bfloat16
    # Four inputs and the result are rounded, each by 2**-9 of a value; twice the sum is allowed.
    assert_close(y.astype(jnp.float32), expected, 2 * 5 * 2.0**-9, "y")
