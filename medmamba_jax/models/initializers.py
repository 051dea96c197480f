"""Initial distributions of the official model's tensors (as PyTorch draws them, measured)."""

import math

import jax
import jax.numpy as jnp

# Official `trunc_normal_(std=.02)` cuts at +-2, a hundred deviations away: a plain normal. JAX's
# truncated_normal cuts at 2 deviations and would give 0.0176.
linear = jax.nn.initializers.normal(0.02)

# kaiming_normal_(mode="fan_out"); JAX counts fan_out as PyTorch does, without the groups.
conv = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def uniform(bound: float):
    """U(-bound, bound)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def fan_in_uniform(fan_in: int):
    """PyTorch's default for conv biases and for Linear weights: U(+-1 / sqrt(fan_in))."""
    return uniform(1.0 / math.sqrt(fan_in))


def dt_bias(key, shape, dtype=jnp.float32):
    """Inverse softplus of step sizes drawn log-uniformly from [1e-3, 1e-1] (Mamba, 3.6)."""
    low, high = math.log(1e-3), math.log(1e-1)
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return dt + jnp.log(-jnp.expm1(-dt))


def A_log(key, shape, dtype=jnp.float32):
    """log(1..n) along the last axis: S4D-real."""
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype)), shape)
