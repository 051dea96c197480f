"""Layers with PyTorch's numerics where Flax's defaults differ."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from medmamba_jax.models import initializers
from medmamba_jax.ops.depthwise_conv import depthwise_conv


def layer_norm(features: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with PyTorch's epsilon and two-pass variance; the statistics are float32.

    The one-pass variance E[x^2] - E[x]^2 loses its digits where the mean is large.
    """
    return nnx.LayerNorm(features, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)


def linear(
    n_in: int, n_out: int, dtype: DTypeLike, rngs: nnx.Rngs, *, use_bias: bool
) -> nnx.Linear:
    """Linear with the official initialisation."""
    return nnx.Linear(
        n_in, n_out, use_bias=use_bias, dtype=dtype, kernel_init=initializers.linear, rngs=rngs
    )


def conv(
    n_in: int, n_out: int, side: int, dtype: DTypeLike, rngs: nnx.Rngs, *, stride: int = 1
) -> nnx.Conv:
    """Square convolution with bias and the official initialisation; no padding if stride > 1."""
    return nnx.Conv(
        n_in,
        n_out,
        (side, side),
        strides=stride,
        padding="SAME" if stride == 1 else "VALID",
        dtype=dtype,
        kernel_init=initializers.conv,
        bias_init=initializers.fan_in_uniform(n_in * side * side),
        rngs=rngs,
    )


class DepthwiseConv(nnx.Module):
    """Depthwise 3x3 convolution with bias and the official initialisation."""

    def __init__(self, features: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        shape = (3, 3, 1, features)
        self.kernel = nnx.Param(initializers.conv(rngs.params(), shape))
        self.bias = nnx.Param(initializers.fan_in_uniform(9)(rngs.params(), (features,)))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) to the same shape."""
        kernel = self.kernel[...].astype(self.dtype)
        return depthwise_conv(x, kernel) + self.bias[...].astype(self.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation with the running statistics of `torch.nn.BatchNorm2d`.

    In training, the biased variance of the batch normalises the batch, but the running variance
    follows the unbiased variance (in Flax it follows the biased one). Momentum is 0.1 by PyTorch's
    definition, and epsilon is 1e-5. Under `jit` with a sharded batch the statistics are those of
    the global batch.

    With `use_running_average` True, the layer normalises by its running statistics and does not
    update them. Evaluation mode uses this, and a frozen layer uses it in training.
    """

    momentum = 0.1
    epsilon = 1e-5

    def __init__(self, features: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        del rngs  # Nothing here is random, but all layers take the same arguments.
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.use_running_average = False
        self.dtype = dtype

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode; `nnx.view` calls this on a copy of the module."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) to the same shape in the compute dtype. Training updates the statistics."""
        x = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean = x.mean((0, 1, 2))
            var = jnp.square(x - mean).mean((0, 1, 2))
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            self.mean[...] += self.momentum * (mean - self.mean[...])
            self.var[...] += self.momentum * (unbiased - self.var[...])
            self.num_batches_tracked[...] += 1
        x = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]
        return x.astype(self.dtype)


def batch_norms(module: nnx.Module) -> dict[str, BatchNorm | nnx.BatchNorm]:
    """Returns every batch normalisation inside a module, ours or Flax's, by its dotted path."""
    return {
        ".".join(map(str, path)): child
        for path, child in nnx.iter_modules(module)
        if isinstance(child, (BatchNorm, nnx.BatchNorm))
    }


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the rest by 1 / (1 - rate)."""
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def drop_path(x: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    """Stochastic depth (Huang et al., arXiv 1603.09382): `dropout` of whole images.

    Args:
      x: (b, h, w, c).
      rate: scalar in [0, 1); may be traced.
      key: random key.
    """
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1, 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
