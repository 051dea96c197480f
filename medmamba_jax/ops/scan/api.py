"""The public selective scan: it checks the arguments and calls the chosen implementation."""

import jax
import jax.numpy as jnp

from medmamba_jax.ops.backend import default_backend
from medmamba_jax.ops.scan.implementations import Case, implementation_of


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

    With dt = delta + delta_bias (then softplus if `delta_softplus`), for each of b, k and d::

        h[t] = exp(dt[t] * A) * h[t-1] + dt[t] * u[t] * B[t]      # n states, h[-1] = 0
        y[t] = sum_n(C[t] * h[t]) + D * u[t]

    Numerics: every implementation computes in float32 (in float64 if u is float64), for inputs of
    any dtype. It never divides. exp(dt * A) may underflow to 0, which is the right limit. Only the
    result is rounded to u's dtype. Where u is bfloat16, the GPU kernels also round the states from
    which their backward pass starts, and the gradients of B and C.

    Source: Gu and Dao, arXiv 2312.00752, section 3.

    Args:
      u: input, (b, l, k, d), floating.
      delta: step size before bias and softplus, (b, l, k, d).
      A: continuous-time decay, (k, d, n), negative in a stable system.
      B: input projection, (b, l, k, n).
      C: output projection, (b, l, k, n).
      D: skip, (k, d).
      delta_bias: added to delta, (k, d).
      delta_softplus: whether dt = softplus(delta + delta_bias).
      implementation: a name in `IMPLEMENTATIONS`, or None for the first row there that takes the
        backend, the dtype and the shape; see docs/scan.md. The backend is that of
        `jax.default_device`: name an implementation for arrays that are elsewhere. Forward-mode
        differentiation needs "associative" or "sequential". Second derivatives need one of them,
        too, where `None` would choose a kernel.

    Returns:
      y, (b, l, k, d), in u's dtype.

    Raises:
      ValueError: a shape or a dtype does not fit, or the implementation's name is unknown.
      NotImplementedError: the named implementation cannot take the backend, the dtype or the
        shape.
    """
    _check(u, delta, A, B, C, D, delta_bias)
    _, l, _, d = u.shape
    case = Case(default_backend(), u.dtype, None, l, d, A.shape[-1])
    chosen = implementation_of("selective_scan", implementation, case)
    return chosen.scan(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=delta_softplus)


def _check(
    u: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
    delta_bias: jax.Array | None,
) -> None:
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


def check_are_arrays(**arguments: object) -> None:
    """Raises a ValueError that names the first argument that is not an array."""
    for name, argument in arguments.items():
        if not hasattr(argument, "dtype"):
            raise ValueError(f"{name} must be an array, got {type(argument).__name__}")


def check_arrays(expected: dict[str, tuple[jax.Array, tuple[int, ...]]], beside: str) -> None:
    """Raises a ValueError that names the first array of a wrong shape or a dtype not floating.

    Args:
      expected: by name, each array and the shape that it must have.
      beside: the sizes that the shapes follow from, for the message.
    """
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} beside {beside}, got {array.shape}")
    for name, (array, _) in expected.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating, got {array.dtype}")
