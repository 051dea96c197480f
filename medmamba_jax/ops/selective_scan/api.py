"""The public selective scan: argument checks, the step size, and the choice of implementation."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from medmamba_jax.ops.selective_scan.associative import scan_associative
from medmamba_jax.ops.selective_scan.chunked import scan_chunked
from medmamba_jax.ops.selective_scan.sequential import scan_sequential


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to run the recurrence.

    Attributes:
      run: `(u, dt, A, B, C, D) -> y`, with dt already biased and positive, in the arithmetic's
        dtype (float32, or float64 where u is float64); y comes back in u's dtype.
      backends: the JAX backends that can run it.
    """

    run: Callable[..., jax.Array]
    backends: tuple[str, ...] = ("cpu", "gpu", "tpu")


# A new implementation is one file beside this one and one row here. The first row that the
# backend can run is what `implementation=None` means.
IMPLEMENTATIONS = {
    "chunked": Implementation(scan_chunked),
    "associative": Implementation(scan_associative),
    "sequential": Implementation(scan_sequential),
}


def choose(implementation: str | None = None) -> str:
    """Returns the name of the implementation that runs on the default backend.

    Args:
      implementation: a name in `IMPLEMENTATIONS`, or None for the backend's default.

    Raises:
      ValueError: the name is unknown.
      NotImplementedError: the default backend cannot run the implementation asked for.
    """
    backend = jax.default_backend()
    able = [name for name, row in IMPLEMENTATIONS.items() if backend in row.backends]
    if implementation is None:
        if not able:
            raise NotImplementedError(f"no selective_scan implementation runs on {backend!r}")
        return able[0]
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r} is unknown; choose one of {sorted(IMPLEMENTATIONS)}"
        )
    if implementation not in able:
        raise NotImplementedError(
            f"implementation={implementation!r} does not run on {backend!r}; {able} do"
        )
    return implementation


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
      implementation: `"chunked"` (default), `"associative"` or `"sequential"`; see docs/scan.md.

    Returns:
      y, (b, l, k, d), in u's dtype.

    Raises:
      ValueError: a shape or a dtype does not fit, or the implementation's name is unknown.
      NotImplementedError: the backend cannot run the implementation asked for.
    """
    _check(u, delta, A, B, C, D, delta_bias)
    name = choose(implementation)
    _log_once(name, jax.default_backend())
    dtype = jnp.promote_types(u.dtype, jnp.float32)
    dt = delta.astype(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.astype(dtype)
    if delta_softplus:
        dt = jax.nn.softplus(dt)
    return IMPLEMENTATIONS[name].run(u, dt, A, B, C, D)


def _check(u, delta, A, B, C, D, delta_bias):
    if u.ndim != 4 or 0 in u.shape:
        raise ValueError(f"u must be a non-empty (b, l, k, d) array, got shape {u.shape}")
    b, l, k, d = u.shape
    n = A.shape[-1] if A.ndim == 3 else 0
    if n < 1:
        raise ValueError(f"A must be (k, d, n) = ({k}, {d}, n >= 1), got shape {A.shape}")
    expected = {
        "delta": (delta, (b, l, k, d)),
        "A": (A, (k, d, n)),
        "B": (B, (b, l, k, n)),
        "C": (C, (b, l, k, n)),
        "D": (D, (k, d)),
    }
    if delta_bias is not None:
        expected["delta_bias"] = (delta_bias, (k, d))
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} beside u {u.shape} and n={n}, got {array.shape}"
            )
    for name, array in {"u": u, **{name: array for name, (array, _) in expected.items()}}.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating, got {array.dtype}")


@functools.cache
def _log_once(name: str, backend: str) -> None:
    logging.info("selective_scan runs %r on %s", name, backend)
