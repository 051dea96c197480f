"""The scan of an image in four orders for CPUs: `stepwise`, with few copies around it."""

import functools

import jax
import jax.numpy as jnp

from medmamba_jax.ops.scan.stepwise import images_together, scan_time_first


def project_and_scan_stepwise(
    u: jax.Array,
    projection: jax.Array,
    *,
    dt_weight: jax.Array,
    dt_bias: jax.Array,
    A: jax.Array,
    D: jax.Array,
) -> jax.Array:
    """Runs `project_and_scan` on a CPU.

    Operations on single pixels come first, while the arrays have the layout of the projection. Then
    one copy brings each array into the order of the steps, in all four directions.

    Args and result: as for `project_and_scan`.
    """
    dtype = u.dtype
    b, h, w, d = u.shape
    r, n = dt_weight.shape[1], A.shape[-1]
    wide = jnp.promote_types(dtype, jnp.float32)
    together = images_together(b, d)
    if together > 1:
        # This puts the images into the last axis, so that the copies below move them together. The
        # pixels keep axes of their own. If they shared an axis with the images, XLA would gather
        # images that are on several devices.
        u = jax.lax.optimization_barrier(u.transpose(3, 1, 2, 0))
        rows = _product(projection.reshape(d, -1).T, u).reshape(4, r + 2 * n, h, w, b)
        low, B, C = jnp.split(rows, (r, r + n), axis=1)
        u, low, weight = u.astype(wide), low.astype(wide), dt_weight.astype(wide)
        bias = dt_bias.astype(wide)[..., None, None, None]
        dt = jax.nn.softplus(_product(weight.swapaxes(1, 2), low) + bias)
        arrays = (
            x.astype(wide)[:, :, :, :, None].transpose(2, 3, 4, 0, 1, 5)
            for x in (jnp.stack([u] * 4), dt, B, C)
        )
    else:
        rows = jnp.einsum("bhwd,dkc->bhwkc", u, projection)
        low, B, C = jnp.split(rows, (r, r + n), axis=-1)
        delta = jnp.einsum("bhwkr,krd->bhwkd", low, dt_weight, preferred_element_type=wide)
        u = u.astype(wide)
        dt = jax.nn.softplus(delta + dt_bias.astype(wide))
        axes = (1, 2, 0, 3, 4)
        arrays = (
            x.astype(wide).transpose(axes)[..., None]
            for x in (jnp.stack([u] * 4, axis=-2), dt, B, C)
        )
    ordered_u, ordered_dt, ordered_B, ordered_C = (_ordered(x) for x in arrays)
    A = A.astype(wide).swapaxes(1, 2)
    y = _merged(scan_time_first(ordered_u, ordered_dt, ordered_B, ordered_C, A), h, w)
    skip = D.astype(wide).sum(0)
    if together > 1:
        y = y[:, :, 0].transpose(3, 0, 1, 2) + u.transpose(3, 1, 2, 0) * skip
    else:
        y = y[..., 0].transpose(2, 0, 1, 3) + u * skip
    return y.astype(dtype)


@jax.custom_vjp
def _product(weight: jax.Array, x: jax.Array) -> jax.Array:
    """Returns weight (..., i, j) times x (..., j, h, w, b): (..., i, h, w, b).

    The gradient of x is taken without a copy in another order of axes.
    """
    return jnp.einsum("...ij,...jhwb->...ihwb", weight, x)


def _product_gradients(
    kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    weight, x = kept
    return (
        jnp.einsum("...ihwb,...jhwb->...ij", dy, x),
        jnp.einsum("...ij,...ihwb->...jhwb", weight, dy),
    )


_product.defvjp(lambda weight, x: (_product(weight, x), (weight, x)), _product_gradients)


@jax.custom_vjp
def _ordered(x: jax.Array) -> jax.Array:
    """Turns images (h, w, p, 4, c, q) into sequences (h * w, p, 4, c, q) in the four orders."""
    return _in_order([x[:, :, :, k] for k in range(4)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _merged(y: jax.Array, h: int, w: int) -> jax.Array:
    """Puts sequences (h * w, p, 4, c, q) back on the image and adds the four: (h, w, p, c, q)."""
    rows, columns = y[:, :, 0] + y[::-1, :, 2], y[:, :, 1] + y[::-1, :, 3]
    rest = rows.shape[1:]
    return rows.reshape(h, w, *rest) + columns.reshape(w, h, *rest).swapaxes(0, 1)


def _in_order(images: list[jax.Array]) -> jax.Array:
    """Returns the steps of each direction, (h * w, p, 4, c, q), of its image (h, w, p, c, q)."""
    h, w, *rest = images[0].shape
    images = [image.swapaxes(0, 1) if k % 2 else image for k, image in enumerate(images)]
    steps = [image.reshape(h * w, *rest) for image in images]
    return jnp.stack([*steps[:2], *(x[::-1] for x in steps[2:])], axis=2)


def _on_image(y: jax.Array, h: int, w: int) -> jax.Array:
    """Undoes `_ordered`."""
    steps = [y[:, :, 0], y[:, :, 1], y[::-1, :, 2], y[::-1, :, 3]]
    rest = steps[0].shape[1:]
    rows, columns = (
        [x.reshape(*sides, *rest) for x in steps[i::2]] for i, sides in enumerate(((h, w), (w, h)))
    )
    images = [rows[0], columns[0].swapaxes(0, 1), rows[1], columns[1].swapaxes(0, 1)]
    return jnp.stack(images, axis=3)


# These gradients are written by hand, because JAX would compute the gradient of each index as an
# array with many zeros, and add these arrays.
_ordered.defvjp(lambda x: (_ordered(x), x.shape[:2]), lambda sides, dy: (_on_image(dy, *sides),))
_merged.defvjp(lambda y, h, w: (_merged(y, h, w), None), lambda h, w, _, dy: (_in_order([dy] * 4),))
