"""The selective scan, one step at a time: a slow and simple reference."""

import jax
import jax.numpy as jnp

from medmamba_jax.ops.scan.recurrence import discretise, in_scan_dtype, read_out


def scan_sequential(
    u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array
) -> jax.Array:
    """Walks the recurrence with `lax.scan` over l; autodiff gives the backward pass.

    Memory of the backward pass grows with l times the whole state. Arguments and result as for
    `scan_chunked`.
    """
    out_dtype = u.dtype
    u, A, B, C, D = in_scan_dtype(u, A, B, C, D)

    def step(h: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        u, dt, B, C = inputs
        a, b = discretise(u, dt, A, B)
        h = a * h + b
        return h, read_out(h, u, C, D)

    time_first = tuple(x.swapaxes(0, 1) for x in (u, dt, B, C))
    h0 = jnp.zeros((u.shape[0], *A.shape), u.dtype)
    _, y = jax.lax.scan(step, h0, time_first)
    return y.swapaxes(0, 1).astype(out_dtype)
