"""The public selective scan: argument checks, and the call of the implementation chosen."""

import functools

import jax
import jax.numpy as jnp
from absl import logging

from medmamba_jax.ops.scan.implementations import (
    IMPLEMENTATIONS,
    Case,
    choose,
    default_backend,
)


def selective_scan(
    u: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
    *,
    delta_bias: jax.Array | None = None,
    delta_softplus: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Runs k independent selective scans along l; differentiable in all seven arrays.

    With dt = delta + delta_bias (then softplus, if asked for), for each of b, k and d::

        h[t] = exp(dt[t] * A) * h[t-1] + dt[t] * u[t] * B[t]      # n states, h[-1] = 0
        y[t] = sum_n(C[t] * h[t]) + D * u[t]

    Numerics: every implementation works in float32 (float64 where u is float64) whatever the
    dtypes of its inputs, never divides, and lets exp(dt * A) underflow to 0, which is the right
    limit. Only the result is rounded to u's dtype.

    Args:
      u: input, (b, l, k, d), floating.
      delta: step size before bias and softplus, (b, l, k, d).
      A: continuous-time decay, (k, d, n), negative in a stable system.
      B: input projection, (b, l, k, n).
      C: output projection, (b, l, k, n).
      D: skip, (k, d).
      delta_bias: added to delta, (k, d).
      delta_softplus: whether dt = softplus(delta + delta_bias).
      implementation: a name in `IMPLEMENTATIONS`, or None for the best that takes the backend,
        the dtype and the shape; see docs/scan.md. The backend is JAX's default: name one for
        arrays that are elsewhere. Forward mode needs "associative" or "sequential", and so do
        second derivatives where the choice would be a kernel.

    Returns:
      y, (b, l, k, d), in u's dtype.

    Raises:
      ValueError: a shape or a dtype does not fit, or the implementation's name is unknown.
      NotImplementedError: the implementation asked for cannot take the backend, the dtype or
        the shape.
    """
    _check(u, delta, A, B, C, D, delta_bias)
    _, l, _, d = u.shape
    case = Case(default_backend(), u.dtype, None, l, d, A.shape[-1])
    name = choose(implementation, case)
    log_choice("selective_scan", name, case)
    return IMPLEMENTATIONS[name].scan(
        u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=delta_softplus
    )


def _check(u, delta, A, B, C, D, delta_bias):
    check_are_arrays(u=u, delta=delta, A=A, B=B, C=C, D=D)
    if u.ndim != 4 or 0 in u.shape:
        raise ValueError(f"u must be a non-empty (b, l, k, d) array, got shape {u.shape}")
    b, l, k, d = u.shape
    n = A.shape[-1] if A.ndim == 3 else 0
    if n < 1:
        raise ValueError(f"A must be (k, d, n) = ({k}, {d}, n >= 1), got shape {A.shape}")
    expected = {
        "u": (u, u.shape),
        "delta": (delta, (b, l, k, d)),
        "A": (A, (k, d, n)),
        "B": (B, (b, l, k, n)),
        "C": (C, (b, l, k, n)),
        "D": (D, (k, d)),
    }
    if delta_bias is not None:
        expected["delta_bias"] = (delta_bias, (k, d))
    check_arrays(expected, f"u {u.shape} and n={n}")


def check_are_arrays(**arguments) -> None:
    """Raises a ValueError that names the first argument that is no array."""
    for name, argument in arguments.items():
        if not hasattr(argument, "dtype"):
            raise ValueError(f"{name} must be an array, got {type(argument).__name__}")


def check_arrays(expected: dict[str, tuple[jax.Array, tuple[int, ...]]], beside: str) -> None:
    """Raises a ValueError that names the first array of another shape than expected, or integer."""
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} beside {beside}, got {array.shape}")
    for name, (array, _) in expected.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating, got {array.dtype}")


@functools.cache
def log_choice(operation: str, name: str, case: Case) -> None:
    """Says once for each case which implementation runs."""
    logging.info("%s runs %r for %s", operation, name, case)
