"""Computes the step sizes of a chunk, once for each pixel and channel, into shared memory."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.pallas_gpu.mosaic import Index, Ref, TileOps, by_channel, pl
from medmamba_jax.ops.pallas_gpu.problem import Problem

# A Chebyshev fit of log(1 + y) / y on [0, 1]; it is off by at most 3e-8.
LOG1P = (
    1.0,
    -0.49999502301216125,
    0.33319270610809326,
    -0.24844369292259216,
    0.19111430644989014,
    -0.13674770295619965,
    0.07836166769266129,
    -0.02958850748836994,
    0.005253457929939032,
)


def log1p(y: jax.Array) -> jax.Array:
    """Returns log(1 + y) for y in [0, 1], with a relative error of 2e-7 in float32.

    Pallas cannot lower `jnp.log1p` here. The sum in log(1 + y) loses digits of a small y: a step of
    1e-3 would have a relative error of 7e-5.
    """
    return y * horner(LOG1P, y)


def sigmoid_of_softplus(dt: jax.Array) -> jax.Array:
    """Returns softplus's derivative where softplus is dt: 1 - exp(-dt), relative error 1e-6."""
    # Use a series where the difference would cancel. Relative to dt, its next term is dt**5 / 720.
    small = dt * horner((1.0, -1 / 2, 1 / 6, -1 / 24, 1 / 120), dt)
    return jnp.where(dt < 0.125, small, 1.0 - jnp.exp(-dt))


def horner(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    """Returns the polynomial sum(coefficients[i] * x**i)."""
    total: Any = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


class StepSizes:
    """Computes dt = softplus(step + bias). It reads step or projects it from its low-rank part.

    Args:
      problem: the kernel's problem.
      step_ref: with a rank, the projection's weights (k, rank, d); otherwise not read.
      bias_ref: the bias (k, d).
      k, channels: the direction and the channels of the tile.
    """

    def __init__(
        self,
        problem: Problem,
        step_ref: Ref,
        bias_ref: Ref,
        k: Index,
        channels: Any,
        interpret: bool,
    ):
        self.problem = problem
        self.ops = TileOps(interpret, by_channel())
        self.bias = self.ops.vectors(self.ops.load(bias_ref.at[k, channels], 0, 1))
        if problem.rank:
            self.low = TileOps(interpret, by_channel(problem.rank), problem.rank)
            self.weight = self.low.spread(self.low.load(step_ref.at[k, :, channels], 0), 0)

    def stage(
        self, chunk: int, packed_s: Ref, step_s: Ref | None, dt_s: Ref, real_pixels: Index | None
    ) -> jax.Array:
        """Fills dt_s (4, chunk, 32) with the step sizes of a chunk, one channel in each lane.

        Args:
          chunk: steps of a chunk.
          packed_s: the chunk's packed rows (4, chunk, p), which begin with the low-rank part.
          step_s: the chunk's step sizes (4, chunk, 32); None if they are projected.
          real_pixels: the number of pixels that lie on the map, or None if all do. The others get
            dt = 0, which does not change the state.

        Returns:
          The sum of dt over the chunk, (4, 32).
        """
        p, ops = self.problem, self.ops

        def stage_pixel(t, total):
            if p.rank:
                row = self.low.load(packed_s.at[:, t, pl.ds(0, p.rank)], 2)
                x = self.low.dot_rows(self.low.spread(row, 2), self.weight)
            else:
                x = ops.load(step_s.at[:, t], 1).astype(jnp.float32)
            x = x + self.bias
            if p.softplus:
                x = jnp.maximum(x, 0.0) + log1p(jnp.exp(-jnp.abs(x)))
            if real_pixels is not None:
                x = x * (t < real_pixels).astype(jnp.float32)
            dt_s[:, t] = x
            return total + x

        return lax.fori_loop(0, chunk, stage_pixel, ops.zeros(1), unroll=True)
