"""Initial distributions of the official model's tensors (as PyTorch draws them, measured)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (key, shape, dtype) -> array, as Flax and `jax.nn.initializers` call them.
Initializer = Callable[..., jax.Array]

# XLA's CPU compiler unrolls a random generator of few elements, and needs seconds for each tensor
# of a small model. From about a thousand elements it keeps the loop: 4096 take half a second.
_LEAST_DRAWN = 4096


def _draw(sample: Initializer, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns `sample(key, shape, dtype)`, in a form that compiles quickly for a small shape.

    An element of JAX's random arrays depends only on the key and its index. So the first elements
    of a longer array are the elements of a shorter one. The barrier keeps XLA from drawing only
    these.
    """
    size = math.prod(shape)
    drawn = sample(key, (max(size, _LEAST_DRAWN),), dtype)
    return jax.lax.optimization_barrier(drawn)[:size].reshape(shape)


def linear(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal with deviation 0.02.

    The official `trunc_normal_(std=.02)` cuts at +-2, which is a hundred deviations: it is a plain
    normal. JAX's `truncated_normal` cuts at 2 deviations, and its deviation would be 0.0176.
    """
    return 0.02 * _draw(jax.random.normal, key, shape, dtype)


def conv(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal with variance 2 / fan_out: PyTorch's `kaiming_normal_(mode="fan_out")`.

    Args:
      key: random key.
      shape: of the kernel, (h, w, in / groups, out). The fan out is h * w * out, whatever the
        number of groups, as PyTorch counts it.
      dtype: of the result.
    """
    height, width, _, n_out = shape
    deviation = math.sqrt(2 / (height * width * n_out))
    return deviation * _draw(jax.random.normal, key, shape, dtype)


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return bound * (2 * _draw(jax.random.uniform, key, shape, dtype) - 1)

    return init


def fan_in_uniform(fan_in: int) -> Initializer:
    """PyTorch's default for conv biases and for Linear weights: U(+-1 / sqrt(fan_in))."""
    return uniform(1.0 / math.sqrt(fan_in))


def dt_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Inverse softplus of step sizes drawn log-uniformly from [1e-3, 1e-1] (Mamba, 3.6)."""
    low, high = math.log(1e-3), math.log(1e-1)
    dt = jnp.exp(low + (high - low) * _draw(jax.random.uniform, key, shape, dtype))
    return dt + jnp.log(-jnp.expm1(-dt))


def A_log(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """log(1..n) along the last axis: S4D-real."""
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype)), shape)
