"""The discretised recurrence and the composition of two steps, which the implementations share.

Inside the scan the state's axes are (n, d). d is last because vector units want a long last axis
(the 128 lanes of a TPU, contiguous loads elsewhere), and n is small.
"""

import jax
import jax.numpy as jnp


def combine(
    left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Composes h -> a h + b of two neighbouring spans, the earlier on the left."""
    a_left, b_left = left
    a_right, b_right = right
    return a_right * a_left, a_right * b_left + b_right


def step_sizes(
    u: jax.Array, delta: jax.Array, delta_bias: jax.Array | None, delta_softplus: bool
) -> jax.Array:
    """Returns dt, like delta, in the scan's arithmetic dtype; `delta_bias` may be None."""
    dt = delta.astype(jnp.promote_types(u.dtype, jnp.float32))
    if delta_bias is not None:
        dt = dt + delta_bias.astype(dt.dtype)
    return jax.nn.softplus(dt) if delta_softplus else dt


def discretise(
    u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (a, b) of h[t] = a[t] h[t-1] + b[t].

    Args:
      u, dt: (..., k, d).
      A: (k, n, d).
      B: (..., k, n).

    Returns:
      a = exp(dt A) and b = dt u B, both (..., k, n, d).
    """
    return jnp.exp(dt[..., None, :] * A), (dt * u)[..., None, :] * B[..., None]


def read_out(h: jax.Array, u: jax.Array, C: jax.Array, D: jax.Array) -> jax.Array:
    """Returns sum_n(C h) + D u, (..., k, d), of states h (..., k, n, d)."""
    return (h * C[..., None]).sum(-2) + D * u


def in_scan_dtype(
    u: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array
) -> tuple[jax.Array, ...]:
    """Casts to the scan's arithmetic dtype and turns A to (k, n, d)."""
    dtype = jnp.promote_types(u.dtype, jnp.float32)
    return (
        u.astype(dtype),
        A.astype(dtype).swapaxes(-1, -2),
        B.astype(dtype),
        C.astype(dtype),
        D.astype(dtype),
    )
