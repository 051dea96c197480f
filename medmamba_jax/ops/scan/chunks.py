"""Cuts sequences into chunks of even length; two implementations of the scan walk such chunks."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medmamba_jax.ops.scan.recurrence import in_scan_dtype

# u, dt, A, B, C, D and the state at each chunk's border.
Residuals = tuple[jax.Array, ...]


def chunk_length(length: int, longest: int) -> int:
    """Returns the chunk that splits `length` evenly into the fewest chunks of at most `longest`.

    Even chunks keep the padding below one step per chunk: 49 steps in chunks of at most 16 become
    4 chunks of 13, not 4 of 16.
    """
    return math.ceil(length / math.ceil(length / longest))


def scan_in_chunks(
    scan: Callable[..., jax.Array],
    longest: int,
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
) -> jax.Array:
    """Calls `scan(chunk, u, dt, A, B, C, D)` with a length that is a multiple of `chunk`.

    Args:
      scan: takes arrays in the scan's arithmetic dtype, and A as (k, n, d).
      longest: the most steps in a chunk.
      u, A, B, C, D: as for `selective_scan`.
      dt: the step size after bias and softplus, float32 or float64, (b, l, k, d).

    Returns:
      y, (b, l, k, d), in u's dtype.
    """
    out_dtype = u.dtype
    u, A, B, C, D = in_scan_dtype(u, A, B, C, D)
    length = u.shape[1]
    chunk = chunk_length(length, longest)
    padding = -length % chunk
    if padding:  # dt = 0 is the identity step: a = 1, b = 0
        u, dt, B, C = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (u, dt, B, C))
    return scan(chunk, u, dt, A, B, C, D)[:, :length].astype(out_dtype)
