"""Patch embedding and patch merging. Both crop odd sizes as the official code does."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from medmamba_jax.models.layers import Conv, LayerNorm, linear


class PatchEmbed(nnx.Module):
    """Cuts the image into patches: a strided convolution without padding, then LayerNorm."""

    def __init__(
        self, in_channels: int, features: int, patch_size: int, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.proj = Conv(in_channels, features, patch_size, dtype, rngs, patches=True)
        self.norm = LayerNorm(features, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, in_channels) to (b, h // patch_size, w // patch_size, c)."""
        return self.norm(self.proj(x))


class PatchMerging(nnx.Module):
    """Halves the map and doubles its channels: 2x2 pixels concatenated, LayerNorm, Linear."""

    def __init__(self, features: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(4 * features, dtype, rngs)
        self.reduction = linear(4 * features, 2 * features, dtype, rngs, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) to (b, h // 2, w // 2, 2c); an odd last row or column is dropped."""
        h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
        x = x[:, :h, :w]
        # Official order of the four pixels: down the first column, then down the second.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(corners, axis=-1)))
