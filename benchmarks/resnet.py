"""ResNet-18 and ResNet-50 (He et al., arXiv 1512.03385), which the project's pipeline can train.

Importing this module adds `resnet18` and `resnet50` to the values of `model.variant`. Layout and
initialisation are torchvision's. In a bottleneck, the 3x3 convolution has the stride ("v1.5").
Kernels are drawn from a normal distribution with variance 2 / fan_out. A shortcut that changes the
shape is a 1x1 convolution.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from medmamba_jax.errors import UserError
from medmamba_jax.models import initializers
from medmamba_jax.models.config import COMPUTE_DTYPES
from medmamba_jax.models.layers import BatchNorm
from medmamba_jax.models.structure import ARCHITECTURES, Architecture

_WIDTH = 64  # channels of the stem and of the first stage's 3x3 convolutions


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The architecture of a ResNet.

    Attributes:
        blocks: number of blocks in each stage.
        bottleneck: whether a block has 1x1, 3x3 and 1x1 convolutions; otherwise it has two of 3x3.
        num_classes: outputs of the head.
        in_channels: channels of the image.
        compute_dtype: dtype of convolutions and activations, "float32" or "bfloat16". Parameters,
            the statistics of norms, the pooled features and the logits are always float32.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    num_classes: int = 1000
    in_channels: int = 3
    compute_dtype: str = "float32"

    min_image_size = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise UserError(f"compute_dtype must be one of {', '.join(COMPUTE_DTYPES)}")

    @property
    def block(self) -> str:
        """The name of the block, for the plan of a run."""
        return "bottleneck block" if self.bottleneck else "basic block"

    @classmethod
    def variant(cls, name: str, **changes: Any) -> "ResNetConfig":
        """Returns a row of `VARIANTS` in which the given values replace fields.

        A value that is None replaces nothing.

        Raises:
            UserError: a ResNet has no such field, or the value is not allowed.
        """
        changed = {field: value for field, value in changes.items() if value is not None}
        fields = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(changed.keys() - fields):
            raise UserError(f"{unknown[0]} is for a MedMamba: leave it out with {name}")
        return cls(**{**VARIANTS[name], **changed})


VARIANTS: dict[str, dict[str, Any]] = {
    "resnet18": {"blocks": (2, 2, 2, 2), "bottleneck": False},
    "resnet50": {"blocks": (3, 4, 6, 3), "bottleneck": True},
}


class _Convolution(nnx.Module):
    """A convolution without bias, and the BatchNorm behind it, which ReLU may follow."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        size: int,
        stride: int,
        dtype: Any,
        rngs: nnx.Rngs,
        *,
        relu: bool,
    ) -> None:
        self.conv = nnx.Conv(
            n_in,
            n_out,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            dtype=dtype,
            kernel_init=initializers.conv,
            rngs=rngs,
        )
        self.norm = BatchNorm(n_out, dtype, rngs, relu=relu)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class _Block(nnx.Module):
    """Some convolutions, and the shortcut around them."""

    def __init__(
        self, n_in: int, width: int, stride: int, bottleneck: bool, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        # (channels, side of the kernel, stride) of each convolution.
        rows = [(width, 3, stride), (width, 3, 1)]
        if bottleneck:
            rows = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        convolutions, channels = [], n_in
        for i, (n_out, size, step) in enumerate(rows):
            relu = i < len(rows) - 1
            convolutions.append(_Convolution(channels, n_out, size, step, dtype, rngs, relu=relu))
            channels = n_out
        self.convolutions = nnx.List(convolutions)
        self.shortcut = (
            _Convolution(n_in, channels, 1, stride, dtype, rngs, relu=False)
            if stride > 1 or n_in != channels
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        around = x if self.shortcut is None else self.shortcut(x)
        for convolution in self.convolutions:
            x = convolution(x)
        return nnx.relu(x + around)


class ResNet(nnx.Module):
    """A ResNet; a new one is in training mode, as `MedMamba` is.

    Args:
        config: the architecture.
        rngs: its stream `params`, or else its default stream, draws the initial parameters.
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.compute_dtype)
        self.config = config
        self.stem = _Convolution(config.in_channels, _WIDTH, 7, 2, dtype, rngs, relu=True)
        channels, stages = _WIDTH, []
        for stage, depth in enumerate(config.blocks):
            width, blocks = _WIDTH << stage, []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(_Block(channels, width, stride, config.bottleneck, dtype, rngs))
                channels = width * (4 if config.bottleneck else 1)
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        init = initializers.fan_in_uniform(channels)
        self.head = nnx.Linear(
            channels, config.num_classes, kernel_init=init, bias_init=init, rngs=rngs
        )
        self.dropout_rng = None

    def __call__(self, images: jax.Array) -> jax.Array:
        """Classifies float32 images (b, h, w, in_channels); returns float32 (b, num_classes)."""
        return self.head(self.pooled(images))

    def pooled(self, images: jax.Array) -> jax.Array:
        """Returns the features that the head reads, float32 (b, c)."""
        x = self.stem(images.astype(self.config.compute_dtype))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return x.astype(jnp.float32).mean((1, 2))


ARCHITECTURES.append(Architecture(ResNetConfig, ResNet, VARIANTS))
