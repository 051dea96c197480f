"""Step sizes of a chunk: once for each pixel and channel, into shared memory."""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from medmamba_jax.ops.pallas_gpu.mosaic import TileOps, by_channel
from medmamba_jax.ops.pallas_gpu.problem import STATES, Problem


class StepSizes:
    """Computes dt = softplus(step + bias), step being read or projected from its low-rank part.

    Args:
      problem: the kernel's problem.
      step_ref: the projection's weights (rank, 32) of this direction and tile, or None.
      bias_ref: (32,).
    """

    def __init__(self, problem: Problem, step_ref, bias_ref, interpret: bool):
        self.problem = problem
        self.ops = TileOps(interpret, by_channel())
        self.bias = self.ops.vectors(self.ops.load(bias_ref, 0, 1))
        if problem.rank:
            self.low = TileOps(interpret, by_channel(problem.rank), problem.rank)
            self.weight = self.low.spread(self.low.load(step_ref, 0), 0)

    def stage(self, chunk: int, packed_ref, step_ref, dt_ref, real_pixels):
        """Fills dt_ref (4, chunk, 32) from a chunk's packed rows (4, chunk, p) or steps.

        Pixels past `real_pixels` (None: all are real) get dt = 0, which leaves the state alone.
        Returns the sum of dt over the chunk, (4, 32).
        """
        p, ops = self.problem, self.ops

        def stage_pixel(t, total):
            if p.rank:
                row = self.low.load(packed_ref.at[:, t, pl.ds(2 * STATES, p.rank)], 2)
                x = self.low.dot_rows(self.low.spread(row, 2), self.weight)
            else:
                x = ops.load(step_ref.at[:, t], 1).astype(jnp.float32)
            x = x + self.bias
            if p.softplus:
                # log1p has no lowering; log(1 + y) is off by 6e-8 at most, absolutely.
                x = jnp.maximum(x, 0.0) + jnp.log(1.0 + jnp.exp(-jnp.abs(x)))
            if real_pixels is not None:
                x = x * (t < real_pixels).astype(jnp.float32)
            dt_ref[:, t] = x
            return total + x

        return lax.fori_loop(0, chunk, stage_pixel, ops.zeros(1), unroll=True)
