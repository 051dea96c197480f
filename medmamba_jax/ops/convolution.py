"""Convolutions, in the form that is fast on the present platform."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel with its own odd-sided kernel, zero-padded to the same size.

    On a CPU, XLA's grouped convolution is 10 to 60 times slower than a sum of shifted images, which
    XLA fuses into one pass. On a GPU the grouped convolution is up to twice as fast in the backward
    pass (docs/performance.md). So a CPU gets the sum of shifts, and every other platform gets the
    grouped convolution; JAX chooses when it lowers the program. The backward pass keeps only x and
    the kernel.

    Args:
      x: images, (b, h, w, c), floating.
      kernel: (side, side, 1, c), in x's dtype.

    Returns:
      (b, h, w, c) in x's dtype.
    """
    return _by_platform(sum_of_shifts, grouped_conv, x, kernel)


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves images with an odd-sided kernel, zero-padded to the same size.

    On a CPU, XLA has a fast convolution for one order of the axes only. Outside of loops it brings
    other orders into this one, but inside of loops it does not. JAX's own gradients have other
    orders, so they took 5 to 10 times as long in the loop over the blocks of a stage. `conv_on_cpu`
    therefore writes the gradients in the fast order. Every other platform gets `plain_conv`; JAX
    chooses when it lowers the program. The backward pass keeps only x and the kernel.

    Args:
      x: images, (b, h, w, c), floating.
      kernel: (side, side, c, c_out), in x's dtype.

    Returns:
      (b, h, w, c_out) in x's dtype.
    """
    return _by_platform(conv_on_cpu, plain_conv, x, kernel)


_one_form = contextvars.ContextVar("one_form", default=False)


@contextlib.contextmanager
def one_form() -> Iterator[None]:
    """Computes each convolution that is traced inside the context as XLA's own convolution.

    A format without platforms, such as ONNX, cannot hold a choice among several forms.
    """
    token = _one_form.set(True)
    try:
        yield
    finally:
        _one_form.reset(token)


_Form = Callable[[jax.Array, jax.Array], jax.Array]


def _by_platform(on_cpu: _Form, elsewhere: _Form, x: jax.Array, kernel: jax.Array) -> jax.Array:
    if _one_form.get():
        return elsewhere(x, kernel)

    # Without the checkpoint, the gradient of `platform_dependent` would keep the arrays of the
    # forms of all platforms, with zeros for the forms that do not run. The checkpoint keeps the two
    # inputs instead. It computes nothing twice, because the gradient of a product needs no result
    # of the forward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chosen(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)

    return chosen(x, kernel)


def plain_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `conv` as XLA's convolution."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `conv` in the form that a CPU computes fast.

    If a map has fewer pixels than channels, this is a matrix product of windows and kernel. With
    gradients, it took less than half of the time of XLA's convolution on maps of 2 x 2 and 7 x 7
    pixels (docs/performance.md).
    """
    _, h, w, c = x.shape
    return (product_of_windows if h * w < c else conv_in_one_order)(x, kernel)


def product_of_windows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `conv` as the product of the windows (b, h, w, side * side * c) and the kernel."""
    side = kernel.shape[0]
    return jnp.concatenate(_shifted(x, side), axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


@jax.custom_vjp
def conv_in_one_order(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `conv`; the convolutions of its gradients have the same order of the axes."""
    return plain_conv(x, kernel)


def _gradients_in_one_order(
    kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    margin = kernel.shape[0] // 2
    dx = plain_conv(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    # The gradient of a tap is the product of the shifted image and dy, summed over images and
    # pixels. So dy is a kernel as large as the map, and the images are the channels.
    dkernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        (1, 1),
        [(margin, margin)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return dx, dkernel.transpose(1, 2, 0, 3)


conv_in_one_order.defvjp(
    lambda x, kernel: (plain_conv(x, kernel), (x, kernel)), _gradients_in_one_order
)


def grouped_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `depthwise_conv` as XLA's convolution with one group for each channel."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def sum_of_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `depthwise_conv` as a sum of shifted images, each times a scalar for each channel.

    The sum is in float32, or in float64 if x is float64.
    """
    side = kernel.shape[0]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    taps = kernel.reshape(side * side, -1).astype(dtype)
    terms = [
        shifted.astype(dtype) * tap for shifted, tap in zip(_shifted(x, side), taps, strict=True)
    ]
    return sum(terms[1:], terms[0]).astype(x.dtype)


def _shifted(x: jax.Array, side: int) -> list[jax.Array]:
    """Returns the image that each tap of a kernel reads, (b, h, w, c), row by row."""
    h, w = x.shape[1:3]
    margin = side // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return [padded[:, i : i + h, j : j + w] for i in range(side) for j in range(side)]
