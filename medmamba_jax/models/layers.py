"""Layers with PyTorch's numerics where Flax's defaults differ."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from medmamba_jax.models import initializers
from medmamba_jax.ops import norms
from medmamba_jax.ops.convolution import conv, depthwise_conv


class LayerNorm(nnx.Module):
    """Layer normalisation with PyTorch's epsilon, by `ops.norms.layer_norm`."""

    epsilon = 1e-5

    def __init__(self, features: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        # As Flax's layers, it takes a key for each parameter. So a seed gives the same weights as
        # with Flax's LayerNorm.
        self.scale = nnx.Param(nnx.initializers.ones(rngs.params(), (features,)))
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (features,)))
        self.dtype = dtype

    def __call__(self, x: jax.Array, gate: jax.Array | None = None) -> jax.Array:
        """(..., c) to the same shape, times SiLU of the gate (..., c) if there is one."""
        x = x.astype(self.dtype)
        return norms.layer_norm(x, self.scale[...], self.bias[...], gate, epsilon=self.epsilon)


def linear(
    n_in: int, n_out: int, dtype: DTypeLike, rngs: nnx.Rngs, *, use_bias: bool
) -> nnx.Linear:
    """Linear with the official initialisation."""
    return nnx.Linear(
        n_in, n_out, use_bias=use_bias, dtype=dtype, kernel_init=initializers.linear, rngs=rngs
    )


class Conv(nnx.Module):
    """Square convolution with bias and the official initialisation.

    A convolution whose windows do not overlap is computed as a matrix product of windows and
    kernel, because XLA's convolution takes longer.

    Args:
      n_in, n_out: channels.
      side: the side of the window, in pixels; an odd number unless `patches` is True.
      patches: whether the windows tile the image without padding. A remainder at the border is
        cropped. Otherwise the window moves by one pixel, and zeros pad the image, so that its size
        stays.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        side: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        *,
        patches: bool = False,
    ) -> None:
        self.kernel = nnx.Param(initializers.conv(rngs.params(), (side, side, n_in, n_out)))
        bias = initializers.fan_in_uniform(n_in * side * side)(rngs.params(), (n_out,))
        self.bias = nnx.Param(bias)
        self.patches = patches
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, n_in) to (b, h, w, n_out); patches give (b, h // side, w // side, n_out)."""
        kernel, x = self.kernel[...].astype(self.dtype), x.astype(self.dtype)
        side = kernel.shape[0]
        if self.patches or side == 1:
            x = jnp.einsum("bhiwjc,ijco->bhwo", _windows(x, side), kernel)
        else:
            x = conv(x, kernel)
        return _plus(x, self.bias[...])


def _plus(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds the bias in its own dtype, float32, so that its gradient is a sum in float32, too."""
    return (x.astype(bias.dtype) + bias).astype(x.dtype)


def _windows(x: jax.Array, side: int) -> jax.Array:
    """Cuts images (b, h, w, c) into windows (b, h // side, side, w // side, side, c)."""
    b, h, w, c = x.shape
    h, w = h // side, w // side
    return x[:, : h * side, : w * side].reshape(b, h, side, w, side, c)


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
        return _plus(depthwise_conv(x, kernel), self.bias[...])


class BatchNorm(nnx.Module):
    """Batch normalisation with the running statistics of `torch.nn.BatchNorm2d`.

    In training, the biased variance of the batch normalises the batch, but the running variance
    follows the unbiased variance (in Flax it follows the biased one). Momentum is 0.1 by PyTorch's
    definition, and epsilon is 1e-5. Under `jit` with a sharded batch the statistics are those of
    the global batch. ReLU follows if `relu` is True.

    With `use_running_average` True, the layer normalises by its running statistics and does not
    update them. Evaluation mode uses this, and a frozen layer uses it in training.
    """

    momentum = 0.1
    epsilon = 1e-5

    def __init__(
        self, features: int, dtype: DTypeLike, rngs: nnx.Rngs, *, relu: bool = False
    ) -> None:
        del rngs  # Nothing here is random, but all layers take the same arguments.
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.use_running_average = False
        self.dtype = dtype
        self.relu = relu

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode; `nnx.view` calls this on a copy of the module."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) to the same shape in the compute dtype. Training updates the statistics."""
        x = x.astype(self.dtype)
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            factor = jax.lax.rsqrt(self.var[...] + self.epsilon) * scale
            y = (x.astype(jnp.float32) - self.mean[...]) * factor + bias
            return (nnx.relu(y) if self.relu else y).astype(self.dtype)
        y, mean, var = norms.batch_norm(x, scale, bias, epsilon=self.epsilon, relu=self.relu)
        count = x.size // x.shape[-1]
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] += self.momentum * (mean - self.mean[...])
        self.var[...] += self.momentum * (unbiased - self.var[...])
        self.num_batches_tracked[...] += 1
        return y


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
