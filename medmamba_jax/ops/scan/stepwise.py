"""The selective scan for CPUs: one step after the other, with a backward pass written by hand.

`None` means this implementation on a CPU. There the state of one step stays in the cache, which is
worth more than the parallel work that an associative scan offers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.scan.chunks import Residuals, scan_in_chunks
from medmamba_jax.ops.scan.recurrence import discretise

# The backward pass holds the states of this many steps in memory. 8 and 32 steps took longer.
_CHUNK = 16


def scan_stepwise(
    u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array
) -> jax.Array:
    """Walks the recurrence with `lax.scan` over l; equivalent to::

        for t in range(l):
            h = exp(dt[t] * A) * h + dt[t] * u[t] * B[t]
            y[t] = sum_n(C[t] * h) + D * u[t]

    The forward pass keeps the inputs and one state (b, k, n, d) for every 16 steps. The backward
    pass walks these chunks in reverse. In each chunk it computes the states again, and then runs
    the adjoint recurrence g[t] = C[t] dy[t] + a[t+1] g[t+1] step by step. The code never divides by
    a decay, so decays that underflow to 0 stay exact. Each step adds its terms in the order of n.

    Args:
      u, A, B, C, D: as for `selective_scan`.
      dt: the step size after bias and softplus, float32 or float64, (b, l, k, d).

    Returns:
      y, (b, l, k, d), in u's dtype.
    """
    return scan_in_chunks(_scan, _CHUNK, u, dt, A, B, C, D)


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
    def step(h: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        u, dt, B, C = inputs
        a, b = discretise(u, dt, A, B)
        h = a * h + b
        return h, _sum_over_states(lambda n: h[:, :, n] * C[:, :, n, None], A.shape[1]) + D * u

    def walk(
        h0: jax.Array, inputs: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        h, y = lax.scan(step, h0, inputs)
        return h, (y, h0)

    h0 = jnp.zeros((u.shape[0], *A.shape), u.dtype)
    _, (y, borders) = lax.scan(walk, h0, tuple(_to_chunks(x, chunk) for x in (u, dt, B, C)))
    return _from_chunks(y), (u, dt, A, B, C, D, borders)


def _scan_backward(chunk: int, residuals: Residuals, dy: jax.Array) -> tuple[jax.Array, ...]:
    u, dt, A, B, C, D, borders = residuals

    def forward_step(
        h: jax.Array, inputs: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        u, dt, B = inputs
        a, b = discretise(u, dt, A, B)
        return a * h + b, (a, a * h)

    def backward_step(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
        dh, dA = carry  # dh: the gradient of the state, from all later steps
        a, decayed, u, dt, B, C, dy = inputs  # decayed: a h, with the state h before this step
        dt_u = dt * u
        h = decayed + dt_u[..., None, :] * B[..., None]
        dh = dh + dy[..., None, :] * C[..., None]
        # The gradient reaches the arguments through b = dt u B and log a = dt A.
        d_log_a = dh * decayed
        d_dtu = _sum_over_states(lambda n: dh[:, :, n] * B[:, :, n, None], A.shape[1])
        ddt = d_dtu * u + _sum_over_states(lambda n: d_log_a[:, :, n] * A[:, n], A.shape[1])
        return (a * dh, dA + d_log_a * dt[..., None, :]), (
            d_dtu * dt,
            ddt,
            _sum_over_channels(dt_u, dh),
            _sum_over_channels(dy, h),
        )

    def walk(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
        h0, u, dt, B, C, dy = inputs
        _, (a, decayed) = lax.scan(forward_step, h0, (u, dt, B))
        return lax.scan(backward_step, carry, (a, decayed, u, dt, B, C, dy), reverse=True)

    nothing = jnp.zeros_like(borders[0])  # dA is summed over the batch at the end
    chunks = (borders, *(_to_chunks(x, chunk) for x in (u, dt, B, C, dy)))
    (_, dA), outputs = lax.scan(walk, (nothing, nothing), chunks, reverse=True)
    du, ddt, dB, dC = (_from_chunks(x) for x in outputs)
    return du + D * dy, ddt, dA.sum(0), dB, dC, (dy * u).sum((0, 1))


_scan.defvjp(_scan_forward, _scan_backward)


def _sum_over_states(term: Callable[[int], jax.Array], n: int) -> jax.Array:
    """Returns term(0) + ... + term(n - 1).

    XLA turns these additions into vector instructions over d. It does not do so for a reduction of
    the axis n, which took twice as long in the backward pass.
    """
    return functools.reduce(jnp.add, map(term, range(n)))


def _sum_over_channels(x: jax.Array, states: jax.Array) -> jax.Array:
    """Returns sum_d(x states), (b, k, n), of x (b, k, d) and states (b, k, n, d)."""
    return jnp.einsum("bkd,bknd->bkn", x, states, precision=lax.Precision.HIGHEST)


def _to_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """(b, l, ...) -> (l / chunk, chunk, b, ...)."""
    x = x.swapaxes(0, 1)
    return x.reshape(-1, chunk, *x.shape[1:])


def _from_chunks(x: jax.Array) -> jax.Array:
    """(l / chunk, chunk, b, ...) -> (b, l, ...)."""
    return x.reshape(-1, *x.shape[2:]).swapaxes(0, 1)
