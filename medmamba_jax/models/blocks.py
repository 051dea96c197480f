"""The two published blocks of MedMamba. Each convolves half of the channels and scans the other.

To add a block, write a module with the same arguments, and add a row to `BLOCKS`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from medmamba_jax.models.layers import BatchNorm, Conv, LayerNorm, drop_path
from medmamba_jax.models.ss2d import SS2D


class SSConvSSM(nnx.Module):
    """SS-Conv-SSM, the block of the paper's later version (official since April 2024).

    The channels are split into halves, left and right. The left half passes BatchNorm, 3x3
    convolution, BatchNorm, ReLU, 3x3 convolution, BatchNorm, ReLU, 1x1 convolution and ReLU. The
    right half passes LayerNorm, SS2D and drop path. A channel shuffle mixes the halves, and the
    block's input is added.

    Args:
      features: channels c of the image, an even number.
      dtype: the dtype of the activations.
      rngs: draws the initial parameters.
      **ss2d_options: arguments of `SS2D`.
    """

    def __init__(
        self, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs, **ss2d_options: Any
    ) -> None:
        half = features // 2
        self.norm0 = BatchNorm(half, dtype, rngs)
        self.conv1 = Conv(half, half, 3, dtype, rngs)
        self.norm1 = BatchNorm(half, dtype, rngs, relu=True)
        self.conv2 = Conv(half, half, 3, dtype, rngs)
        self.norm2 = BatchNorm(half, dtype, rngs, relu=True)
        self.conv3 = Conv(half, half, 1, dtype, rngs)
        self.norm = LayerNorm(half, dtype, rngs)
        self.ss2d = SS2D(half, dtype=dtype, rngs=rngs, **ss2d_options)

    def __call__(self, x: jax.Array, drop_path_rate: jax.Array, key: jax.Array | None) -> jax.Array:
        """(b, h, w, c) to the same shape.

        Args:
          x: the image.
          drop_path_rate: scalar, the drop path rate of the scanned half.
          key: random key for dropout and drop path; None turns both off.
        """
        left, right = jnp.split(x, 2, axis=-1)
        left = self.norm1(self.conv1(self.norm0(left)))
        left = self.norm2(self.conv2(left))
        left = nnx.relu(self.conv3(left))
        right = _scanned(self.ss2d, self.norm(right), drop_path_rate, key)
        # A channel shuffle with two groups interleaves the halves: even channels are convolved.
        return jnp.stack(_with_own_gradients(left, right), axis=-1).reshape(x.shape) + x


class ConvSSM(nnx.Module):
    """Conv-SSM, the block of the paper's first version (official commit ba326fe).

    The channels are split into halves, left and right. The left half passes 3x3 convolution,
    BatchNorm, ReLU, 3x3 convolution, BatchNorm, ReLU and 1x1 convolution. The right half passes
    LayerNorm, SS2D and drop path, and the unchanged right half is added. A 1x1 convolution mixes
    the halves, and the block's input is added.

    Args: as for `SSConvSSM`.
    """

    def __init__(
        self, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs, **ss2d_options: Any
    ) -> None:
        half = features // 2
        self.conv1 = Conv(half, half, 3, dtype, rngs)
        self.norm1 = BatchNorm(half, dtype, rngs, relu=True)
        self.conv2 = Conv(half, half, 3, dtype, rngs)
        self.norm2 = BatchNorm(half, dtype, rngs, relu=True)
        self.conv3 = Conv(half, half, 1, dtype, rngs)
        self.norm = LayerNorm(half, dtype, rngs)
        self.ss2d = SS2D(half, dtype=dtype, rngs=rngs, **ss2d_options)
        self.final_conv = Conv(features, features, 1, dtype, rngs)

    def __call__(self, x: jax.Array, drop_path_rate: jax.Array, key: jax.Array | None) -> jax.Array:
        """As `SSConvSSM.__call__`."""
        left, right = jnp.split(x, 2, axis=-1)
        left = self.norm1(self.conv1(left))
        left = self.norm2(self.conv2(left))
        left = self.conv3(left)
        right = right + _scanned(self.ss2d, self.norm(right), drop_path_rate, key)
        return self.final_conv(jnp.concatenate([left, right], axis=-1)) + x


def _scanned(
    ss2d: SS2D, x: jax.Array, drop_path_rate: jax.Array, key: jax.Array | None
) -> jax.Array:
    """Applies SS2D with dropout, then drop path; without a key both are off."""
    if key is None:
        return ss2d(x)
    dropout_key, drop_path_key = jax.random.split(key)
    return drop_path(ss2d(x, dropout_key), drop_path_rate, drop_path_key)


@jax.custom_vjp
def _with_own_gradients(left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both halves, and makes XLA write each half's gradient as an array of its own.

    The sums in the backward pass would otherwise read every second channel, which is slow.
    """
    return left, right


_with_own_gradients.defvjp(
    lambda left, right: ((left, right), None),
    lambda kept, gradients: jax.lax.optimization_barrier(gradients),
)

BLOCKS = {"ss_conv_ssm": SSConvSSM, "conv_ssm": ConvSSM}
