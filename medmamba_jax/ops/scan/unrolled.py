"""The selective scan in chunks whose steps are written out, for programs that leave JAX."""

import jax
import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.scan.chunks import scan_in_chunks
from medmamba_jax.ops.scan.recurrence import discretise, read_out

# In onnxruntime 16 steps took less time than 8.
_CHUNK = 16


def scan_unrolled(
    u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array
) -> jax.Array:
    """Walks chunks with `lax.scan`; within a chunk, each step is an operation of its own.

    Decays, inputs and outputs of a chunk are computed for all of its steps at once. Only the
    recurrence h[t] = a[t] h[t-1] + b[t] is left for the single steps: one product and one sum. A
    runtime that calls a kernel for each operation, such as onnxruntime, then makes a tenth of the
    calls that `scan_sequential` needs. All operations are elementary, so that other formats than
    XLA's can hold them. The states of one chunk are in memory at a time. Memory of the backward
    pass grows with l times the whole state. Arguments and result as for `scan_chunked`.
    """
    return scan_in_chunks(_scan, _CHUNK, u, dt, A, B, C, D)


def _scan(
    chunk: int,
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
) -> jax.Array:
    b = u.shape[0]

    def walk(h: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        u, dt, B, C = inputs
        decays, additions = (jnp.split(x, chunk) for x in discretise(u, dt, A, B))
        states = []
        for decay, addition in zip(decays, additions, strict=True):
            h = decay * h + addition
            states.append(h)
        return h, read_out(jnp.concatenate(states), u, C, D)

    def to_chunks(x: jax.Array) -> jax.Array:
        """(b, l, ...) -> (l / chunk, chunk, b, ...)."""
        return x.swapaxes(0, 1).reshape(-1, chunk, b, *x.shape[2:])

    h0 = jnp.zeros((1, b, *A.shape), u.dtype)
    _, y = lax.scan(walk, h0, tuple(to_chunks(x) for x in (u, dt, B, C)))
    return y.reshape(-1, b, *y.shape[3:]).swapaxes(0, 1)
