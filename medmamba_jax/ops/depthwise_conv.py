"""Depthwise convolution as a sum of shifted images."""

import jax
import jax.numpy as jnp


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel with its own odd-sided kernel, zero-padded to the same size.

    Equivalent to `lax.conv_general_dilated(x, kernel, (1, 1), "SAME", feature_group_count=c,
    dimension_numbers=("NHWC", "HWIO", "NHWC"))`, which XLA compiles into something many times
    slower for channels-last images (docs/performance.md); shifts and multiply-adds fuse into one
    pass. Numerics: accumulates in float32.

    Args:
      x: (b, h, w, c).
      kernel: (side, side, 1, c).

    Returns:
      (b, h, w, c) in x's dtype.
    """
    side = kernel.shape[0]
    h, w = x.shape[1:3]
    margin = side // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    y = sum(
        padded[:, i : i + h, j : j + w].astype(dtype) * kernel[i, j, 0].astype(dtype)
        for i in range(side)
        for j in range(side)
    )
    return y.astype(x.dtype)
