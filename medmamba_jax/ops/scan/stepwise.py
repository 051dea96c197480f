"""The selective scan for CPUs: one step after the other, with a backward pass written by hand.

`None` means this implementation on a CPU. There the state of one step stays in the cache, which is
worth more than the parallel work that an associative scan offers.

Vector instructions work on the last axis of an array, the lanes. These are the channels, or the
images where there are few channels. So inside this module the arrays have the axes (l, p, k, d, q),
and the state has (p, k, n, d, q). The batch is p * q images, and p or q is 1.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.scan.chunks import Residuals, chunk_length
from medmamba_jax.ops.scan.recurrence import in_scan_dtype

# The backward pass holds the states of this many steps in memory. 8 and 32 steps took longer.
_CHUNK = 16
# LLVM unrolls a loop over 16 lanes. Then it makes vectors of another axis, which took 3 times as
# long.
_FEWEST_LANES = 32


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
    out_dtype = u.dtype
    u, A, B, C, D = in_scan_dtype(u, A, B, C, D)
    together = images_together(u.shape[0], u.shape[-1])
    first = functools.partial(_time_first, together=together)
    y = scan_time_first(first(u), first(dt), first(B), first(C), A)
    return (_batch_first(y) + D * u).astype(out_dtype)


def images_together(b: int, d: int) -> int:
    """Returns q, the number of images that share the lanes: all of them if the channels are few."""
    return b if d < _FEWEST_LANES <= b else 1


def scan_time_first(
    u: jax.Array, dt: jax.Array, B: jax.Array, C: jax.Array, A: jax.Array
) -> jax.Array:
    """Returns sum_n(C h) for all steps, (l, p, k, d, q).

    Args:
      u, dt: (l, p, k, d, q); float32 or float64, as all arguments.
      B, C: (l, p, k, n, q).
      A: (k, n, d).
    """
    length = dt.shape[0]
    chunk = chunk_length(length, _CHUNK)
    padding = -length % chunk
    if padding:  # dt = 0 is the identity step: a = 1, b = 0
        u, dt, B, C = (jnp.pad(x, ((0, padding), *[(0, 0)] * 4)) for x in (u, dt, B, C))
    return _scan(chunk, u, dt, A[..., None], B, C)[:length]


def _time_first(x: jax.Array, together: int) -> jax.Array:
    """(b, l, k, c) -> (l, b / together, k, c, together)."""
    b, l, k, c = x.shape
    return x.reshape(b // together, together, l, k, c).transpose(2, 0, 3, 4, 1)


def _batch_first(x: jax.Array) -> jax.Array:
    """(l, p, k, c, q) -> (p * q, l, k, c)."""
    l, p, k, c, q = x.shape
    return x.transpose(1, 4, 0, 2, 3).reshape(p * q, l, k, c)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(
    chunk: int, u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array
) -> jax.Array:
    return _scan_forward(chunk, u, dt, A, B, C)[0]


def _scan_forward(
    chunk: int, u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array
) -> tuple[jax.Array, Residuals]:
    n = A.shape[1]

    def step(h: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        dt, dt_u, B, C = inputs
        h = jnp.exp(_wide(dt) * A) * h + _wide(dt_u) * _deep(B)
        return h, _sum_over_states(lambda i: h[:, :, i] * C[:, :, i, None], n)

    def walk(
        h0: jax.Array, inputs: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        h, y = lax.scan(step, h0, inputs)
        return h, (y, h0)

    _, p, k, d, q = dt.shape
    h0 = jnp.zeros((p, k, n, d, q), dt.dtype)
    _, (y, borders) = lax.scan(walk, h0, tuple(_to_chunks(x, chunk) for x in (dt, dt * u, B, C)))
    return _from_chunks(y), (u, dt, A, B, C, borders)


def _scan_backward(chunk: int, residuals: Residuals, dy: jax.Array) -> tuple[jax.Array, ...]:
    u, dt, A, B, C, borders = residuals
    n = A.shape[1]

    def forward_step(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        h, states = carry
        t, dt, dt_u, B = inputs
        h = jnp.exp(_wide(dt) * A) * h + _wide(dt_u) * _deep(B)
        return (h, states.at[t + 1].set(h)), None

    def backward_step(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, ...], states: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
        dh, dA = carry  # dh: the gradient of the state, from all later steps
        t, dt, dt_u, B, C, dy = inputs
        a = jnp.exp(_wide(dt) * A)
        dh = dh + _wide(dy) * _deep(C)
        # The gradient reaches the arguments through b = dt u B and log a = dt A.
        d_log_a = dh * a * states[t]
        d_dt_u = _sum_over_states(lambda i: dh[:, :, i] * B[:, :, i, None], n)
        d_dt_a = _sum_over_states(lambda i: d_log_a[:, :, i] * A[:, i], n)
        dB, dC = _sum_over_channels(dt_u, dh), _sum_over_channels(dy, states[t + 1])
        return (a * dh, dA + d_log_a * _wide(dt)), (d_dt_u, d_dt_a, dB, dC)

    def walk(carry: tuple[jax.Array, ...], inputs: tuple[jax.Array, ...]) -> Any:
        dh, dA, states = carry
        h0, dt, dt_u, B, C, dy = inputs
        (_, states), _ = lax.scan(forward_step, (h0, states.at[0].set(h0)), (steps, dt, dt_u, B))
        (dh, dA), outputs = lax.scan(
            functools.partial(backward_step, states=states),
            (dh, dA),
            (steps, dt, dt_u, B, C, dy),
            reverse=True,
        )
        return (dh, dA, states), outputs

    steps = jnp.arange(chunk)
    nothing = jnp.zeros_like(borders[0])  # dA is summed over the batch at the end
    states = jnp.zeros((chunk + 1, *nothing.shape), nothing.dtype)
    chunks = (borders, *(_to_chunks(x, chunk) for x in (dt, dt * u, B, C, dy)))
    (_, dA, _), outputs = lax.scan(walk, (nothing, nothing, states), chunks, reverse=True)
    d_dt_u, d_dt_a, dB, dC = (_from_chunks(x) for x in outputs)
    return d_dt_u * dt, d_dt_u * u + d_dt_a, dA.sum((0, 4))[..., None], dB, dC


_scan.defvjp(_scan_forward, _scan_backward)


def _wide(x: jax.Array) -> jax.Array:
    """Makes a value of each channel, (p, k, d, q), fit the state (p, k, n, d, q)."""
    return x[:, :, None]


def _deep(x: jax.Array) -> jax.Array:
    """Makes a value of each state, (p, k, n, q), fit the state (p, k, n, d, q)."""
    return x[:, :, :, None]


def _sum_over_states(term: Callable[[int], jax.Array], n: int) -> jax.Array:
    """Returns term(0) + ... + term(n - 1).

    XLA turns these additions into vector instructions over the lanes. It does not do so for a
    reduction of the axis n, which took twice as long in the backward pass.
    """
    return functools.reduce(jnp.add, map(term, range(n)))


def _sum_over_channels(x: jax.Array, states: jax.Array) -> jax.Array:
    """Returns sum_d(x states), (p, k, n, q), of x (p, k, d, q) and states (p, k, n, d, q)."""
    d, q = x.shape[-2:]
    if q > 1:
        return _sum_over_states(lambda i: x[:, :, None, i] * states[:, :, :, i], d)
    return jnp.einsum("pkdq,pkndq->pknq", x, states, precision=lax.Precision.HIGHEST)


def _to_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """(l, ...) -> (l / chunk, chunk, ...)."""
    return x.reshape(-1, chunk, *x.shape[1:])


def _from_chunks(x: jax.Array) -> jax.Array:
    """(l / chunk, chunk, ...) -> (l, ...)."""
    return x.reshape(-1, *x.shape[2:])
