"""SS2D: the mixer that scans an image in four directions (MedMamba, section 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from medmamba_jax.models import initializers
from medmamba_jax.models.layers import DepthwiseConv, LayerNorm, dropout, linear
from medmamba_jax.ops.ss2d_scan import NUM_DIRECTIONS, project_and_scan


class SS2D(nnx.Module):
    """Gated selective scan of an image; official `SS2D` in MedMamba.py.

    `in_proj` widens the c channels to two maps, x and z, of d = 2c channels each. x passes a
    depthwise 3x3 convolution, SiLU, the scan in four directions and LayerNorm. The result is
    multiplied by SiLU(z), and `out_proj` narrows it to c channels.

    Args:
      features: channels c.
      d_state: states n of the scan.
      dt_rank: rank r of the step size's projection.
      drop_rate: dropout on the output.
      dtype: the dtype of the activations.
      scan_implementation: name for `selective_scan`, or None for the backend's default.
      rngs: draws the initial parameters.
    """

    def __init__(
        self,
        features: int,
        *,
        d_state: int,
        dt_rank: int,
        drop_rate: float,
        dtype: DTypeLike,
        scan_implementation: str | None,
        rngs: nnx.Rngs,
    ) -> None:
        d, k, r, n = 2 * features, NUM_DIRECTIONS, dt_rank, d_state
        self.in_proj = linear(features, 2 * d, dtype, rngs, use_bias=False)
        self.conv = DepthwiseConv(d, dtype, rngs)
        self.x_proj = nnx.Param(initializers.fan_in_uniform(d)(rngs.params(), (d, k, r + 2 * n)))
        self.dt_weight = nnx.Param(initializers.uniform(r**-0.5)(rngs.params(), (k, r, d)))
        self.dt_bias = nnx.Param(initializers.dt_bias(rngs.params(), (k, d)))
        self.A_log = nnx.Param(initializers.A_log(rngs.params(), (k, d, n)))
        self.D = nnx.Param(jnp.ones((k, d)))
        self.out_norm = LayerNorm(d, dtype, rngs)
        self.out_proj = linear(d, features, dtype, rngs, use_bias=False)
        self.drop_rate = drop_rate
        self.dtype = dtype
        self.scan_implementation = scan_implementation

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Mixes (b, h, w, c) to the same shape; `key` None means no dropout."""
        # The two results go to different places. So they are two products: XLA would have to copy
        # the halves out of one product of twice the width.
        x, z = (x @ half for half in jnp.split(self.in_proj.kernel[...].astype(self.dtype), 2, 1))
        x = nnx.silu(self.conv(x))
        # The projection acts on each pixel alone, so the order of the pixels does not matter. One
        # projection of the image is enough for all four directions.
        y = project_and_scan(
            x,
            self.x_proj[...].astype(self.dtype),
            dt_weight=self.dt_weight[...].astype(self.dtype),
            dt_bias=self.dt_bias[...],
            A=-jnp.exp(self.A_log[...]),
            D=self.D[...],
            implementation=self.scan_implementation,
        )
        y = self.out_proj(self.out_norm(y, gate=z))
        if key is not None and self.drop_rate > 0:
            y = dropout(y, self.drop_rate, key)
        return y
