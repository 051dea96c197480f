"""The whole network: patch embedding, stages of blocks, mean pooling, head."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from medmamba_jax.models.blocks import BLOCKS
from medmamba_jax.models.config import MedMambaConfig
from medmamba_jax.models.layers import batch_norms, dropout, linear
from medmamba_jax.models.patch import PatchEmbed, PatchMerging
from medmamba_jax.ops.backend import default_backend


class Stage(nnx.Module):
    """Blocks of one resolution, whose parameters are stacked.

    Every tensor of `blocks` has a leading axis `depth`, so that an optimiser handles a third of the
    leaves. On a CPU one `lax.scan` runs the blocks if there are several, and XLA compiles the block
    once for any depth. Elsewhere they run one after another: a loop would copy all that a block
    keeps for the backward pass into and out of a stack (docs/performance.md).
    """

    def __init__(self, config: MedMambaConfig, stage: int, rngs: nnx.Rngs) -> None:
        depth = config.depths[stage]

        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def make_blocks(rngs: nnx.Rngs) -> nnx.Module:
            return BLOCKS[config.block](
                config.dims[stage],
                d_state=config.d_state,
                dt_rank=config.dt_rank(stage),
                drop_rate=config.attn_drop_rate,
                dtype=jnp.dtype(config.compute_dtype),
                scan_implementation=config.scan_implementation,
                rngs=rngs,
            )

        self.blocks = make_blocks(rngs)
        self.drop_path_rates = config.drop_path_rates(stage)
        self.remat = config.remat[stage]  # type: ignore[index]  # __post_init__ made a tuple

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """(b, h, w, c) to the same shape; without a key dropout and drop path are off."""
        graphdef, params, statistics = nnx.split(self.blocks, nnx.Param, ...)  # type: ignore[misc]

        def run_block(x: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
            params, statistics, rate, key = inputs
            block = nnx.merge(graphdef, params, statistics)
            # XLA must write a block's input and its gradient once. Otherwise each of their readers,
            # such as the sums of a norm, computes the end of the previous block again.
            x = block(jax.lax.optimization_barrier(x), rate, key)
            return x, nnx.state(block, nnx.Not(nnx.Param))

        if self.remat:
            run_block = jax.checkpoint(run_block)
        depth = len(self.drop_path_rates)
        rates = jnp.array(self.drop_path_rates, jnp.float32)
        keys = None if key is None else jax.random.split(key, depth)
        run = jax.lax.scan if default_backend() == "cpu" and depth > 1 else _run_one_by_one
        x, statistics = run(run_block, x, (params, statistics, rates, keys))
        if not all(norm.use_running_average for norm in batch_norms(self.blocks).values()):
            # If every norm uses its running statistics, nothing is written, so that `jax.jit` may
            # close over a model in evaluation mode. A frozen norm returns its statistics unchanged.
            nnx.update(self.blocks, statistics)
        return x


def _run_one_by_one(run_block: Any, x: jax.Array, blocks: Any) -> tuple[jax.Array, Any]:
    """Does what `jax.lax.scan` does, without a loop in the compiled program."""
    # With `jit`, JAX traces and lowers one block for all of them. XLA inlines the calls before it
    # optimises.
    run_block = jax.jit(run_block)
    outputs = []
    for i in range(len(jax.tree.leaves(blocks)[0])):
        x, output = run_block(x, jax.tree.map(lambda leaf, i=i: leaf[i], blocks))
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


class MedMamba(nnx.Module):
    """MedMamba (Yue and Li, arXiv 2403.03849); official `VSSM` in MedMamba.py.

    A new model is in training mode, as in PyTorch: `model.eval()` or
    `nnx.view(model, deterministic=True, use_running_average=True)` turns dropout and drop path off
    and makes BatchNorm use its running statistics. A training call updates those statistics and
    the random stream `dropout_rng` in place.

    Args:
      config: the architecture.
      rngs: `params` (or the default stream) initialises; `dropout` seeds dropout and drop path.
    """

    def __init__(self, config: MedMambaConfig, *, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.compute_dtype)
        stages = range(len(config.depths))
        self.config = config
        self.patch_embed = PatchEmbed(
            config.in_channels, config.dims[0], config.patch_size, dtype, rngs
        )
        self.stages = nnx.List([Stage(config, i, rngs) for i in stages])
        self.merges = nnx.List([PatchMerging(config.dims[i], dtype, rngs) for i in stages[:-1]])
        self.head = (
            linear(config.num_features, config.num_classes, jnp.float32, rngs, use_bias=True)
            if config.num_classes
            else None
        )
        self.dropout_rng = rngs.dropout.fork()
        self.deterministic = False

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the mode; `nnx.view` calls this on a copy of the module."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(
        self, images: jax.Array, *, features_only: bool = False
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images.

        Args:
          images: float32 (b, h, w, in_channels); h and w at least `config.min_image_size` (32).
            If a side is no multiple of 32, a map loses its last row or column when it is halved, as
            in the official code.
          features_only: return each stage's map instead of logits.

        Returns:
          float32 logits (b, num_classes), or pooled features (b, dims[-1]) if num_classes is 0.
          With `features_only`, one map (b, h_i, w_i, dims[i]) for each stage in the compute dtype,
          at strides 4, 8, 16 and 32. Each map is that before patch merging; the official
          `layers.{i}` returns the map after it.

        Raises:
          ValueError: the images' rank, channels, dtype or size do not fit.
        """
        if features_only:
            return self._feature_maps(images)
        return self._classified(self.pooled(images))

    def continued(self, x: jax.Array, stage: int) -> jax.Array:
        """Classifies the map of a stage, so that code can look at the network from there on.

        Args:
          x: (b, h_i, w_i, dims[stage]), a map as `features_only` returns it. The model is in
            evaluation mode.
          stage: index of the stage, from 0.

        Returns:
          What a call on the images returns: float32 (b, num_classes).
        """
        for i in range(stage + 1, len(self.stages)):
            x = self.stages[i](self.merges[i - 1](x), None)
        return self._classified(_pooled(x))

    def _classified(self, pooled: jax.Array) -> jax.Array:
        return pooled if self.head is None else self.head(pooled)

    def pooled(self, images: jax.Array) -> jax.Array:
        """Returns the pooled features, which `head` turns into logits.

        Args:
          images: as for `__call__`.

        Returns:
          float32 (b, dims[-1]), the mean of the last stage's map.

        Raises:
          ValueError: as `__call__`.
        """
        return _pooled(self._feature_maps(images)[-1])

    def _feature_maps(self, images: jax.Array) -> tuple[jax.Array, ...]:
        self._check(images)
        stochastic = not self.deterministic and (
            self.config.drop_rate or self.config.attn_drop_rate or self.config.drop_path_rate
        )
        keys: Any = [None] * (len(self.stages) + 1)
        if stochastic:
            keys = jax.random.split(self.dropout_rng(), len(keys))
        x = self.patch_embed(images.astype(self.config.compute_dtype))
        if stochastic and self.config.drop_rate:
            x = dropout(x, self.config.drop_rate, keys[-1])
        features = []
        for i, stage in enumerate(self.stages):
            x = stage(x, keys[i])
            features.append(x)
            if i < len(self.merges):
                x = self.merges[i](x)
        return tuple(features)

    def _check(self, images: jax.Array) -> None:
        config, smallest = self.config, self.config.min_image_size
        if images.ndim != 4 or images.shape[-1] != config.in_channels:
            raise ValueError(
                f"images must be (b, h, w, {config.in_channels}), got shape {images.shape}"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be floating and normalised, got {images.dtype}; "
                "see medmamba_jax.predictor.normalize"
            )
        if min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"images must be at least {smallest} px high and wide, got "
                f"{images.shape[1]}x{images.shape[2]}; resize them first"
            )


def _pooled(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32).mean((1, 2))
