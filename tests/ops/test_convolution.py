"""The forms of both convolutions against loops over pixels and taps in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medmamba_jax.ops.convolution import (
    conv,
    conv_in_one_order,
    depthwise_conv,
    grouped_conv,
    plain_conv,
    product_of_windows,
    sum_of_shifts,
)

FORMS = [grouped_conv, sum_of_shifts, depthwise_conv]


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


def as_depthwise(kernel):
    """Returns the taps of a full kernel (i, j, c, c_out) as kernels (i, j, 1, c) of each c_out."""
    return [kernel[:, :, None, :, out] for out in range(kernel.shape[-1])]


def convolve_fully(x, kernel, dy):
    """As `convolve` for a kernel (side, side, c, c_out): one depthwise kernel for each c_out."""
    results = [
        convolve(x, taps, np.repeat(dy[..., out, None], x.shape[-1], axis=-1))
        for out, taps in enumerate(as_depthwise(kernel))
    ]
    y = np.stack([y.sum(-1) for y, _, _ in results], -1)
    dx = sum(dx for _, dx, _ in results)
    return y, dx, np.stack([dkernel[:, :, 0] for _, _, dkernel in results], -1)


def make_inputs(side):
    rng = np.random.default_rng(side)
    return [rng.standard_normal(s) for s in [(2, 4, 7, 3), (side, side, 1, 3), (2, 4, 7, 3)]]


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients(form, side):
    x, kernel, dy = make_inputs(side)

    @jax.jit
    def both(x, kernel, dy):
        y, pull = jax.vjp(form, x, kernel)
        return y, pull(dy)

    with jax.default_matmul_precision("highest"):
        y, gradients = both(*(jnp.asarray(array, jnp.float32) for array in (x, kernel, dy)))
    results = zip((y, *gradients), convolve(x, kernel, dy), ("y", "x", "kernel"), strict=True)
    for actual, expected, name in results:
        assert_close(actual, expected, 1e-6, name)


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("form", [plain_conv, product_of_windows, conv_in_one_order])
def test_values_and_gradients_of_a_full_convolution(form, side):
    check_fully(form, side, (3, 5, 7, 4))


@pytest.mark.parametrize("shape", [(3, 3, 5, 4), (2, 2, 3, 9)], ids=["large map", "small map"])
def test_the_chosen_form_of_a_full_convolution(shape):
    check_fully(conv, 3, shape)


def check_fully(form, side, shape):
    rng = np.random.default_rng(side)
    shapes = [shape, (side, side, shape[-1], 6), (*shape[:-1], 6)]
    arrays = [rng.standard_normal(s) for s in shapes]

    @jax.jit
    def both(x, kernel, dy):
        y, pull = jax.vjp(form, x, kernel)
        return y, pull(dy)

    with jax.default_matmul_precision("highest"):
        y, gradients = both(*(jnp.asarray(array, jnp.float32) for array in arrays))
    results = zip((y, *gradients), convolve_fully(*arrays), ("y", "x", "kernel"), strict=True)
    for actual, expected, name in results:
        assert_close(actual, expected, 1e-6, name)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_rounded_once(form):
    x, kernel, dy = (np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in make_inputs(3))
    y = jax.jit(form)(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert_close(y.astype(jnp.float32), convolve(x, kernel, dy)[0], 2.0**-8, "y")


def convolutions(platform, function, *arguments) -> int:
    """How many of XLA's convolutions a program lowered for the platform has."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
    return lowered.as_text().count("stablehlo.convolution")


def loss(x, kernel):
    return (depthwise_conv(x, kernel) ** 2).sum()


@pytest.fixture
def arrays():
    """An image and a kernel of small whole numbers, whose products and sums are exact."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.integers(-4, 5, s), jnp.float32) for s in [(2, 4, 7, 3), (3, 3, 1, 3)]]


@pytest.mark.parametrize("platform, expected", [("cpu", 0), ("cuda", 1), ("rocm", 1), ("tpu", 1)])
def test_the_platform_that_is_lowered_for_decides_the_form(arrays, platform, expected):
    """And not the backend of this process; "rocm" and "tpu" have no form of their own."""
    assert convolutions(platform, depthwise_conv, *arrays) == expected
    batched = jax.vmap(depthwise_conv, in_axes=(0, None))
    assert convolutions(platform, batched, arrays[0][None], arrays[1]) == expected
    # Forward, and backward for each of the two arguments.
    assert convolutions(platform, jax.grad(loss, argnums=(0, 1)), *arrays) == 3 * expected


def test_an_exported_program_has_the_form_of_each_platform(arrays):
    exported = export.export(jax.jit(depthwise_conv), platforms=("cpu", "cuda"))(*arrays)
    assert "stablehlo.convolution" in exported.mlir_module()
    np.testing.assert_array_equal(exported.call(*arrays), jax.jit(sum_of_shifts)(*arrays))


def test_the_backward_pass_keeps_the_two_inputs_alone(arrays):
    _, pull = jax.vjp(depthwise_conv, *arrays)
    kept = sorted(x.shape for x in jax.tree.leaves(pull))
    assert kept == sorted(x.shape for x in arrays)


def test_forward_mode(arrays):
    x, kernel = arrays
    both = jax.jit(lambda *arrays: jax.jvp(depthwise_conv, arrays, arrays))
    y, tangent = both(x, kernel)
    np.testing.assert_array_equal(tangent, 2 * y)  # bilinear


def test_second_derivatives_are_those_of_a_square(arrays):
    """The loss is quadratic in x: half of the product of x, the Hessian and x."""
    x, kernel = arrays
    gradient = functools.partial(jax.grad(loss), kernel=kernel)
    _, hessian_times_x = jax.jit(lambda x: jax.jvp(gradient, (x,), (x,)))(x)
    assert (x * hessian_times_x).sum() / 2 == jax.jit(loss)(x, kernel)


def test_a_batch_on_several_devices_stays_there(arrays):
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip(f"needs 2 devices, has {len(devices)}")
    mesh = Mesh(np.array(devices[:2]), ("data",))
    x = jax.device_put(arrays[0], NamedSharding(mesh, PartitionSpec("data")))
    kernel = jax.device_put(arrays[1], NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(jax.grad(loss)).lower(x, kernel).compile()
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_array_equal(compiled(x, kernel), jax.jit(jax.grad(loss))(*arrays))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads a program for a CPU")
@pytest.mark.parametrize("form, expected", [(conv, 3), (plain_conv, 1)])
def test_in_a_loop_on_a_cpu_the_gradients_have_the_one_fast_order(form, expected):
    """XLA computes other orders by a loop over pixels and taps. `plain_conv` shows that it does."""
    x, kernel = jnp.ones((4, 6, 6, 5)), jnp.ones((2, 3, 3, 5, 5))

    def loss(kernel):
        return jax.lax.scan(lambda x, kernel: (form(x, kernel), None), x, kernel)[0].sum()

    text = jax.jit(jax.grad(loss)).lower(kernel).compile().as_text()
    assert text.count(" convolution(") == 3
    assert text.count("dim_labels=b01f_01io->b01f") == expected


def test_elsewhere_a_full_convolution_is_that_of_xla(arrays):
    x, kernel = arrays[0], jnp.ones((3, 3, 3, 5))
    assert convolutions("cuda", conv, x, kernel) == 1
    assert convolutions("cuda", jax.grad(lambda *a: (conv(*a) ** 2).sum(), (0, 1)), x, kernel) == 3
