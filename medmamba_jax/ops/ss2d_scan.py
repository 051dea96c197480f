"""The public scan of an image in four orders; a fused kernel can compute all of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from medmamba_jax.ops.backend import default_backend
from medmamba_jax.ops.scan.api import check_are_arrays, check_arrays
from medmamba_jax.ops.scan.implementations import Case, Implementation, implementation_of

# Row by row, column by column, and both backwards (MedMamba, section 3.2; VMamba's cross-scan).
NUM_DIRECTIONS = 4


def ss2d_scan(
    u: jax.Array,
    dt: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    dt_weight: jax.Array,
    dt_bias: jax.Array,
    A: jax.Array,
    D: jax.Array,
    implementation: str | None = None,
) -> jax.Array:
    """Scans u in four orders, each with its own parameters, and adds the four results.

    Equivalent to, for the orders k = rows, columns, rows reversed, columns reversed::

        delta = dt[..., k, :] @ dt_weight[k]
        y += unorder_k(selective_scan(order_k(u), order_k(delta), A[k], order_k(B[..., k, :]),
                                      order_k(C[..., k, :]), D[k], delta_bias=dt_bias[k],
                                      delta_softplus=True))

    All inputs are in the raster order of the image. A projection of the channels commutes with the
    orders, so the caller projects once for all orders. Numerics: as `selective_scan`. The
    projection to delta accumulates in float32 (in float64 if u is float64), and the four directions
    are added in the same dtype.

    Source: Yue and Li, arXiv 2403.03849, section 3.2 (MedMamba's SS2D).

    Args:
      u: the image, (b, h, w, d), floating.
      dt: the step size's low-rank part, (b, h, w, k, r), k = 4.
      B, C: the input's and the output's projection, (b, h, w, k, n).
      dt_weight: projects dt to the step size of each channel, (k, r, d).
      dt_bias: added to the step size before the softplus, (k, d).
      A: continuous-time decay, (k, d, n), negative in a stable system.
      D: skip, (k, d).
      implementation: as for `selective_scan`.

    Returns:
      (b, h, w, d) in u's dtype.

    Raises:
      ValueError, NotImplementedError: as `selective_scan`.
    """
    _check(u, dt, B, C, dt_weight, dt_bias, A, D)
    chosen = _chosen(u, A, implementation)
    return _scan_image(chosen, u, dt, B, C, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D)


def project_and_scan(
    u: jax.Array,
    projection: jax.Array,
    *,
    dt_weight: jax.Array,
    dt_bias: jax.Array,
    A: jax.Array,
    D: jax.Array,
    implementation: str | None = None,
) -> jax.Array:
    """Projects u to dt, B and C, and scans it as `ss2d_scan` does.

    Equivalent to::

        dt, B, C = split(einsum("bhwd,dkc->bhwkc", u, projection), (r, r + n), axis=-1)
        ss2d_scan(u, dt, B, C, dt_weight=dt_weight, ...)

    A fused kernel gets its rows from one product, in float32. Elsewhere dt, B and C have u's dtype.

    Source: as `ss2d_scan`.

    Args:
      u: the image, (b, h, w, d), floating.
      projection: (d, k, r + 2n), in u's dtype.
      dt_weight, dt_bias, A, D, implementation: as for `ss2d_scan`.

    Returns:
      (b, h, w, d) in u's dtype.

    Raises:
      ValueError, NotImplementedError: the implementation cannot run, as for `ss2d_scan`. The shapes
        are not checked, because a model makes all arguments.
    """
    chosen = _chosen(u, A, implementation)
    parameters = {"dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D}
    if chosen.projected_image is not None:
        return chosen.projected_image(u, projection, **parameters)
    r, n = dt_weight.shape[1], A.shape[-1]
    rows = jnp.einsum("bhwd,dkc->bhwkc", u, projection)
    return _scan_image(chosen, u, *jnp.split(rows, (r, r + n), axis=-1), **parameters)


def _chosen(u: jax.Array, A: jax.Array, implementation: str | None) -> Implementation:
    _, h, w, d = u.shape
    case = Case(default_backend(), u.dtype, h, w, d, A.shape[-1])
    return implementation_of("ss2d_scan", implementation, case)


def _scan_image(
    chosen: Implementation,
    u: jax.Array,
    dt: jax.Array,
    B: jax.Array,
    C: jax.Array,
    **parameters: jax.Array,
) -> jax.Array:
    if chosen.image is not None:
        return chosen.image(u, dt, B, C, **parameters)
    return _scan_as_sequences(chosen.scan, u, dt, B, C, **parameters)


def _scan_as_sequences(
    scan: Callable[..., jax.Array],
    u: jax.Array,
    dt: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    dt_weight: jax.Array,
    dt_bias: jax.Array,
    A: jax.Array,
    D: jax.Array,
) -> jax.Array:
    """Runs `ss2d_scan`, whose arguments are checked, through an `Implementation.scan`."""
    _, h, w, _ = u.shape
    wide = jnp.promote_types(u.dtype, jnp.float32)
    delta = jnp.einsum("blkr,krd->blkd", order(dt), dt_weight, preferred_element_type=wide)
    everywhere = jnp.broadcast_to(u[..., None, :], (*u.shape[:3], NUM_DIRECTIONS, u.shape[3]))
    y = scan(
        order(everywhere),
        delta,
        A,
        order(B),
        order(C),
        D,
        delta_bias=dt_bias,
        delta_softplus=True,
    )
    return merge(y, h, w).astype(u.dtype)


def _check(
    u: jax.Array,
    dt: jax.Array,
    B: jax.Array,
    C: jax.Array,
    dt_weight: jax.Array,
    dt_bias: jax.Array,
    A: jax.Array,
    D: jax.Array,
) -> None:
    check_are_arrays(u=u, dt=dt, B=B, C=C, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D)
    if u.ndim != 4 or 0 in u.shape:
        raise ValueError(f"u must be a non-empty (b, h, w, d) array, got shape {u.shape}")
    b, h, w, d = u.shape
    k = NUM_DIRECTIONS
    n = A.shape[-1] if A.ndim == 3 else 0
    if n < 1:
        raise ValueError(f"A must be (k, d, n) = ({k}, {d}, n >= 1), got shape {A.shape}")
    r = dt.shape[-1] if dt.ndim == 5 else 0
    if r < 1:
        wanted = f"({b}, {h}, {w}, {k}, r >= 1)"
        raise ValueError(f"dt must be (b, h, w, k, r) = {wanted}, got shape {dt.shape}")
    expected = {
        "dt": (dt, (b, h, w, k, r)),
        "B": (B, (b, h, w, k, n)),
        "C": (C, (b, h, w, k, n)),
        "dt_weight": (dt_weight, (k, r, d)),
        "dt_bias": (dt_bias, (k, d)),
        "A": (A, (k, d, n)),
        "D": (D, (k, d)),
    }
    check_arrays({"u": (u, u.shape), **expected}, f"u {u.shape}, r={r} and n={n}")


def order(x: jax.Array) -> jax.Array:
    """Turns images (b, h, w, 4, c) into sequences (b, h * w, 4, c), direction k in its order."""
    b, h, w, _, c = x.shape
    rows = x[..., 0::2, :].reshape(b, h * w, 2, c)
    columns = x[..., 1::2, :].swapaxes(1, 2).reshape(b, h * w, 2, c)
    return jnp.stack(
        [rows[:, :, 0], columns[:, :, 0], rows[:, ::-1, 1], columns[:, ::-1, 1]], axis=2
    )


def merge(y: jax.Array, h: int, w: int) -> jax.Array:
    """Puts sequences (b, h * w, 4, c) back on the image and adds the four directions.

    The additions follow the official order: rows, rows reversed, columns, columns reversed.

    Args:
      y: sequences, direction k in its own order.
      h, w: the image's sides.

    Returns:
      (b, h, w, c) in float32, or in float64 if y is float64.
    """
    b, _, _, c = y.shape
    y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    rows = y[:, :, 0] + y[:, ::-1, 2]
    columns = [x.reshape(b, w, h, c).swapaxes(1, 2) for x in (y[:, :, 1], y[:, ::-1, 3])]
    return rows.reshape(b, h, w, c) + columns[0] + columns[1]
