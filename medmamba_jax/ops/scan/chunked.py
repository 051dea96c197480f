"""The selective scan in chunks, walked in order, with an associative scan inside each.

`None` means this implementation where none above it in the table takes the case.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.backend import default_backend
from medmamba_jax.ops.scan.chunks import Residuals, scan_in_chunks
from medmamba_jax.ops.scan.recurrence import combine, discretise, read_out


def max_chunk(backend: str) -> int:
    """Returns the most steps of a chunk on a backend ("cpu", "gpu", "tpu" or another).

    The lengths were measured on a CPU and on a GPU over the four stage shapes of MedMamba-T
    (docs/scan.md). A CPU is fast if a chunk's states fit into its cache, a GPU if it has few, large
    launches. Other backends, such as the TPU, get the GPU's length without a measurement.
    """
    return 16 if backend == "cpu" else 64


def scan_chunked(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
    *,
    longest: int | None = None,
) -> jax.Array:
    """Walks chunks of l with `lax.scan`; equivalent to, with T steps to a chunk::

        for chunk in split(l, T):
            a, b = exp(dt * A), dt * u * B
            b[0] += a[0] * h                       # the state at the chunk's border
            h_all = associative_scan(combine, (a, b))
            y = sum_n(C * h_all) + D * u
            h = h_all[-1]

    The backward pass keeps the inputs and one state (b, k, n, d) for each chunk. It walks the
    chunks in reverse, computes each chunk's states again, and runs the adjoint recurrence
    dh[t] = a[t+1] dh[t+1] + C[t] dy[t] as a reverse associative scan. So only the states of one
    chunk are in memory, not those of the sequence. The code never divides by a decay and never
    recovers h[t-1] from h[t], so decays that underflow to 0 stay exact.

    Args:
      u, A, B, C, D: as for `selective_scan`.
      dt: the step size after bias and softplus, float32 or float64, (b, l, k, d).
      longest: the most steps in a chunk; None means `max_chunk` of the default backend.

    Returns:
      y, (b, l, k, d), in u's dtype.
    """
    if longest is None:
        # `lax.platform_dependent` would choose later, when the program is lowered. It does not help
        # here: the number of border states that the backward pass keeps depends on the chunk's
        # length, and its gradient would keep the border states of every platform.
        longest = max_chunk(default_backend())
    return scan_in_chunks(_scan, longest, u, dt, A, B, C, D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(
    chunk: int,
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
) -> jax.Array:
    return _scan_forward(chunk, u, dt, A, B, C, D)[0]


def _scan_forward(
    chunk: int,
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
) -> tuple[jax.Array, Residuals]:
    def walk(
        h0: jax.Array, inputs: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        u, dt, B, C = inputs
        _, h = _chunk_states(h0, u, dt, A, B)
        return h[:, -1], (read_out(h, u, C, D), h0)

    h0 = jnp.zeros((u.shape[0], *A.shape), u.dtype)
    _, (y, borders) = lax.scan(walk, h0, tuple(_to_chunks(x, chunk) for x in (u, dt, B, C)))
    return _from_chunks(y), (u, dt, A, B, C, D, borders)


def _scan_backward(chunk: int, residuals: Residuals, dy: jax.Array) -> tuple[jax.Array, ...]:
    u, dt, A, B, C, D, borders = residuals

    def walk(
        carry: tuple[jax.Array, jax.Array, jax.Array], inputs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
        dh_next, dA, dD = carry  # dh_next: the gradient of the state that leaves this chunk
        h0, u, dt, B, C, dy = inputs
        a, h = _chunk_states(h0, u, dt, A, B)
        h_before = jnp.concatenate([h0[:, None], h[:, :-1]], axis=1)
        a_after = jnp.concatenate([a[:, 1:], jnp.ones_like(a[:, :1])], axis=1)
        into_h = (dy[..., None, :] * C[..., None]).at[:, -1].add(dh_next)
        _, dh = lax.associative_scan(combine, (a_after, into_h), reverse=True, axis=1)

        # The gradient reaches the arguments through b = dt u B and log a = dt A.
        dt_u = dh * B[..., None]
        d_log_a = dh * h_before * a
        dB = (dh * (dt * u)[..., None, :]).sum(-1)
        dC = (dy[..., None, :] * h).sum(-1)
        d_dtu = dt_u.sum(-2)
        du = d_dtu * dt + D * dy
        ddt = d_dtu * u + (d_log_a * A).sum(-2)
        dA += (d_log_a * dt[..., None, :]).sum((0, 1))
        dD += (dy * u).sum((0, 1))
        return (a[:, 0] * dh[:, 0], dA, dD), (du, ddt, dB, dC)

    carry = (jnp.zeros_like(borders[0]), jnp.zeros_like(A), jnp.zeros_like(D))
    chunks = (borders, *(_to_chunks(x, chunk) for x in (u, dt, B, C, dy)))
    (_, dA, dD), outputs = lax.scan(walk, carry, chunks, reverse=True)
    du, ddt, dB, dC = (_from_chunks(x) for x in outputs)
    return du, ddt, dA, dB, dC, dD


_scan.defvjp(_scan_forward, _scan_backward)


def _chunk_states(
    h0: jax.Array, u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns decays and states (b, t, k, n, d) of one chunk that starts from h0 (b, k, n, d)."""
    a, b = discretise(u, dt, A, B)
    # Folding h0 into the first step leaves one scan; adding cumprod(a) * h0 after it would read
    # and write the states once more.
    b = b.at[:, 0].add(a[:, 0] * h0)
    _, h = lax.associative_scan(combine, (a, b), axis=1)
    return a, h


def _to_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """(b, l, ...) -> (l / chunk, b, chunk, ...)."""
    return x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)


def _from_chunks(x: jax.Array) -> jax.Array:
    """(l / chunk, b, chunk, ...) -> (b, l, ...)."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
