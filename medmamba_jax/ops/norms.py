"""Normalisations whose backward pass is written by hand: it keeps little and reads little.

JAX's own gradient of a normalisation keeps several float32 arrays of the input's size, and passes
over them once for the mean and once for the variance. Here the statistics and the input, in its own
dtype, are kept for the backward pass. One pass computes all sums, and another one the gradient.
Forward mode (`jax.jvp`) does not work, as with the scans' own backward passes.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_Arrays = tuple[Any, ...]  # some of them None

# At 48 and 96 channels, sums over rows of 16 pixels took 0.3 to 0.7 of the time of sums over single
# pixels on an H200. From 192 channels on they took longer.
_FEW_CHANNELS = 128


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, relu: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the statistics of the batch, in float32 (in float64 if x is float64).

    Equivalent to::

        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        y = (x - mean) / sqrt(var + epsilon) * scale + bias
        y = maximum(y, 0)  # only with relu

    A second pass computes the variance, because E[x^2] - E[x]^2 loses its digits where the mean is
    large.

    Source: Ioffe and Szegedy, arXiv 1502.03167.

    Args:
      x: (b, h, w, c), floating.
      scale, bias: (c,).
      epsilon: added to the variance.
      relu: whether ReLU follows.

    Returns:
      y (b, h, w, c) in x's dtype, and the mean and the biased variance (c,), through which no
      gradient flows.
    """
    y, mean, var = _batch_norm(epsilon, relu, x, scale, bias)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, gate: jax.Array | None, *, epsilon: float
) -> jax.Array:
    """Normalises the channels of each pixel in float32 (in float64 if x is float64), then gates.

    Equivalent to::

        y = (x - x.mean(-1)) / sqrt(x.var(-1) + epsilon) * scale + bias
        y = y * silu(gate)  # only with a gate

    A second pass computes the variance, as in `batch_norm`. With a gate, y is rounded to x's dtype
    once, after the product.

    Source: Ba et al., arXiv 1607.06450.

    Args:
      x: (..., c), floating.
      scale, bias: (c,).
      gate: like x, or None.
      epsilon: added to the variance.

    Returns:
      (..., c) in x's dtype.
    """
    # XLA's fusions of a norm are several times faster on a matrix than on four axes.
    pixels = x.reshape(-1, x.shape[-1])
    gates = None if gate is None else gate.reshape(pixels.shape)
    images = x.shape[0] if x.ndim > 2 else 1
    y = _layer_norm(epsilon, images, pixels, scale, bias, gates)
    return y.reshape(x.shape)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _pixel_sums(x: jax.Array, images: int) -> jax.Array:
    """Sums images (..., c) over all pixels: (c,). `images` is the number of images.

    It sums the pixels of each image first, then the images. In one sum over all pixels of a small
    map, XLA would give every 32 channels to one block of threads, and most of the GPU would wait.
    XLA also sums a matrix of few columns slowly, so neighbouring pixels of few channels share a
    row. They are pixels of one image, because XLA would gather a batch whose images are on several
    devices if a row had pixels of two images.
    """
    c = x.shape[-1]
    pixels = x.size // max(images * c, 1)  # a batch may be empty
    together = math.gcd(pixels, 16) if c <= _FEW_CHANNELS else 1
    by_image = x.reshape(images, pixels // together, together * c).sum(1)
    # Without the barrier, XLA would join the two sums again.
    return lax.optimization_barrier(by_image).reshape(-1, c).sum(0)


def _apart(kept: Any) -> Any:
    """Returns what was kept, and makes XLA compute terms of it again in the backward pass.

    Otherwise XLA finds the same terms in the forward pass and keeps them, which are float32 arrays
    of the input's size.
    """
    return lax.optimization_barrier(kept)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _batch_norm(
    epsilon: float, relu: bool, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _batch_norm_forward(epsilon, relu, x, scale, bias)[0]


def _batch_norm_forward(
    epsilon: float, relu: bool, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], _Arrays]:
    wide = _wide(x)
    count, images = x.size // x.shape[-1], x.shape[0]
    mean = _pixel_sums(wide, images) / count
    var = _pixel_sums(jnp.square(wide - mean), images) / count
    inverse = lax.rsqrt(var + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    if relu:
        y = jnp.maximum(y, 0)
    return (y.astype(x.dtype), mean, var), (x, scale, bias, mean, inverse)


def _batch_norm_backward(epsilon: float, relu: bool, kept: _Arrays, gradients: _Arrays) -> _Arrays:
    x, scale, bias, *statistics = kept
    mean, inverse = _apart(statistics)
    dy = _wide(gradients[0])
    normal = (_wide(x) - mean) * inverse
    if relu:
        dy = jnp.where(normal * scale + bias > 0, dy, 0)
    count, images = x.size // x.shape[-1], x.shape[0]
    dbias, dscale = _pixel_sums(dy, images), _pixel_sums(dy * normal, images)
    dx = (dy - dbias / count - normal * (dscale / count)) * (inverse * scale)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(
    epsilon: float,
    images: int,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    gate: jax.Array | None,
) -> jax.Array:
    return _layer_norm_forward(epsilon, images, x, scale, bias, gate)[0]


def _layer_norm_forward(
    epsilon: float,
    images: int,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    gate: jax.Array | None,
) -> tuple[jax.Array, _Arrays]:
    wide = _wide(x)
    mean = wide.mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    y = (wide - mean) * inverse * scale + bias
    if gate is not None:
        y = y * jax.nn.silu(_wide(gate))
    return y.astype(x.dtype), (x, scale, bias, gate, mean, inverse)


def _layer_norm_backward(epsilon: float, images: int, kept: _Arrays, dy: jax.Array) -> _Arrays:
    x, scale, bias, *others = kept
    gate, mean, inverse = _apart(others)
    normal, dy = (_wide(x) - mean) * inverse, _wide(dy)
    dgate = None
    if gate is not None:
        wide = _wide(gate)
        sigmoid = jax.nn.sigmoid(wide)
        # The derivative of SiLU, x sigmoid(x).
        slope = sigmoid * (1 + wide * (1 - sigmoid))
        dgate = (dy * (normal * scale + bias) * slope).astype(gate.dtype)
        # The sums over pixels and those over channels read this array, so XLA must write it once,
        # and in x's narrow dtype.
        dy = _wide(_apart((dy * (wide * sigmoid)).astype(x.dtype)))
    dscale, dbias = _pixel_sums(dy * normal, images), _pixel_sums(dy, images)
    dnormal = dy * scale
    dx = dnormal - dnormal.mean(-1, keepdims=True)
    dx = (dx - normal * (dnormal * normal).mean(-1, keepdims=True)) * inverse
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype), dgate


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
