"""The selective scan as one `jax.lax.associative_scan` over the whole length."""

import jax

from medmamba_jax.ops.scan.recurrence import combine, discretise, in_scan_dtype, read_out


def scan_associative(
    u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array
) -> jax.Array:
    """Computes all states at once, in O(log l) depth; the shortest of the implementations.

    Every state of every step is in memory: a (b, l, k, n, d) array in float32 is n times the input,
    and several of them exist at the same time. Arguments and result as for `scan_chunked`.
    """
    out_dtype = u.dtype
    u, A, B, C, D = in_scan_dtype(u, A, B, C, D)
    _, h = jax.lax.associative_scan(combine, discretise(u, dt, A, B), axis=1)
    return read_out(h, u, C, D).astype(out_dtype)
