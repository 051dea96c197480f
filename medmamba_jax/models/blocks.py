"""The two blocks that carry the name MedMamba: half the channels convolved, half scanned."""

import jax
import jax.numpy as jnp
from flax import nnx

from medmamba_jax.models.layers import BatchNorm, conv, drop_path, layer_norm
from medmamba_jax.models.ss2d import SS2D


class SSConvSSM(nnx.Module):
    """SS-Conv-SSM, the block of the paper's later version (official since April 2024).

    out = shuffle(concat(conv(left), drop_path(ss2d(norm(right))))) + x. The left half passes
    BN, conv3, BN, ReLU, conv3, BN, ReLU, conv1, ReLU.
    """

    def __init__(self, features: int, *, dtype, rngs: nnx.Rngs, **ss2d_options):
        half = features // 2
        self.norm0 = BatchNorm(half, dtype, rngs)
        self.conv1 = conv(half, half, 3, dtype, rngs)
        self.norm1 = BatchNorm(half, dtype, rngs)
        self.conv2 = conv(half, half, 3, dtype, rngs)
        self.norm2 = BatchNorm(half, dtype, rngs)
        self.conv3 = conv(half, half, 1, dtype, rngs)
        self.norm = layer_norm(half, dtype, rngs)
        self.ss2d = SS2D(half, dtype=dtype, rngs=rngs, **ss2d_options)

    def __call__(self, x: jax.Array, drop_path_rate: jax.Array, key: jax.Array | None) -> jax.Array:
        """(b, h, w, c) to the same shape.

        Args:
          x: the image.
          drop_path_rate: scalar, of the scanned half.
          key: random key for dropout and drop path; None turns both off.
        """
        left, right = jnp.split(x, 2, axis=-1)
        left = nnx.relu(self.norm1(self.conv1(self.norm0(left))))
        left = nnx.relu(self.norm2(self.conv2(left)))
        left = nnx.relu(self.conv3(left))
        right = _scanned(self.ss2d, self.norm(right), drop_path_rate, key)
        # A channel shuffle with two groups interleaves the halves: even channels are convolved.
        return jnp.stack([left, right], axis=-1).reshape(x.shape) + x


class ConvSSM(nnx.Module):
    """Conv-SSM, the block of the paper's first version (official commit ba326fe).

    out = finalconv11(concat(conv(left), right + drop_path(ss2d(norm(right))))) + x. The left half
    passes conv3, BN, ReLU, conv3, BN, ReLU, conv1.
    """

    def __init__(self, features: int, *, dtype, rngs: nnx.Rngs, **ss2d_options):
        half = features // 2
        self.conv1 = conv(half, half, 3, dtype, rngs)
        self.norm1 = BatchNorm(half, dtype, rngs)
        self.conv2 = conv(half, half, 3, dtype, rngs)
        self.norm2 = BatchNorm(half, dtype, rngs)
        self.conv3 = conv(half, half, 1, dtype, rngs)
        self.norm = layer_norm(half, dtype, rngs)
        self.ss2d = SS2D(half, dtype=dtype, rngs=rngs, **ss2d_options)
        self.final_conv = conv(features, features, 1, dtype, rngs)

    def __call__(self, x: jax.Array, drop_path_rate: jax.Array, key: jax.Array | None) -> jax.Array:
        """As `SSConvSSM.__call__`."""
        left, right = jnp.split(x, 2, axis=-1)
        left = nnx.relu(self.norm1(self.conv1(left)))
        left = nnx.relu(self.norm2(self.conv2(left)))
        left = self.conv3(left)
        right = right + _scanned(self.ss2d, self.norm(right), drop_path_rate, key)
        return self.final_conv(jnp.concatenate([left, right], axis=-1)) + x


def _scanned(ss2d, x, drop_path_rate, key):
    """SS2D, then drop path."""
    if key is None:
        return ss2d(x)
    dropout_key, drop_path_key = jax.random.split(key)
    return drop_path(ss2d(x, dropout_key), drop_path_rate, drop_path_key)


BLOCKS = {"ss_conv_ssm": SSConvSSM, "conv_ssm": ConvSSM}
