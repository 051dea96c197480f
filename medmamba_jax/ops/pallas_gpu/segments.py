"""The states that each segment of a sequence passes to the next, so that all can run at once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.pallas_gpu.mosaic import Index, Ref, TileOps, by_channel, kernel, pl, plgpu
from medmamba_jax.ops.pallas_gpu.problem import CHANNELS, IMAGES, STATES, Problem
from medmamba_jax.ops.pallas_gpu.staging import StepSizes
from medmamba_jax.ops.pallas_gpu.streams import SLOTS, Streams, inputs
from medmamba_jax.ops.pallas_gpu.walk import Walk


def make_segment_ends(
    problem: Problem, *, adjoint: bool, interpret: bool
) -> Callable[..., Sequence[jax.Array]]:
    """Builds segment_ends(x, packed, step, bias, A) -> (ends, totals of dt).

    Equivalent, for every image, direction and segment, to the recurrence from a state of 0::

        for t in segment:                      # x is u
            h = exp(dt[t] * A) * h + dt[t] * u[t] * B[t]
        for t in reversed(segment):            # adjoint: x is dy
            h = exp(dt[t] * A) * (h + dy[t] * C[t])

    and the sum of dt, because the segment multiplies the state that enters it by exp(sum(dt) * A).

    Registers: as in `make_forward`, a lane has one channel, its 16 states and 16 decays; the sum of
    dt takes one more. Numerics: as in `make_forward`.

    Args:
      problem: the static shape.
      adjoint: whether the recurrence is that of the gradient.
      interpret: whether the kernel runs in the interpreter.

    The arrays are those of `make_forward`. The results are ends (b, k, segments, n, d) and totals
    (b, k, segments, d), float32.
    """
    p = problem
    walk = Walk(p, p.config.forward_chunk)
    T, reads_steps = walk.chunk, not p.rank
    segments = p.config.backward_segments if adjoint else p.config.forward_segments

    def body(
        x_ref,
        packed_ref,
        step_ref,
        bias_ref,
        A_ref,
        ends_ref,
        total_ref,
        *,
        x_s,
        packed_s,
        dt_s,
        barrier,
        step_s=None,
    ):
        k, s = lax.axis_index("k"), lax.axis_index("s")
        images = pl.ds(lax.axis_index("b") * IMAGES, IMAGES)
        channels = pl.ds(lax.axis_index("d") * CHANNELS, CHANNELS)
        tile = TileOps(interpret, by_channel())
        first, end = walk.segment(k, s, segments)

        def chunk_at(j):
            return end - 1 - j if adjoint else first + j

        arrays = inputs(
            p,
            images,
            k,
            channels,
            maps=[(x_ref, x_s)],
            packed=(packed_ref, packed_s),
            step=(step_ref, step_s),
        )
        streams = Streams(walk, k, barrier, arrays, chunk_at=chunk_at, count=end - first)

        def walk_chunk(j, carry):
            """Stages the step sizes and takes the chunk's steps."""
            h, total = carry
            c, slot = chunk_at(j), streams.wait(j)

            step_slot = step_s.at[slot] if reads_steps else None
            steps = StepSizes(p, step_ref, bias_ref, k, channels, interpret)
            sum_of_dt = steps.stage(T, packed_s.at[slot], step_slot, dt_s, walk.real_pixels(k, c))
            tile.base.warp_barrier()

            def step(i, h):
                """Updates the 16 states of a lane's channel, or their gradients."""
                t = walk.pixel(k, T - 1 - i if adjoint else i)
                x = tile.load(x_s.at[slot, :, t], 1).astype(jnp.float32)
                dt = tile.load(dt_s.at[:, t], 1)
                a = jnp.exp2(tile.spread(dt, 1) * A)
                row = packed_s.at[slot, :, t, p.C if adjoint else p.B]
                row = tile.spread(tile.load(row, 2), 2)
                if adjoint:
                    return a * (h + tile.spread(x, 1) * row)
                return a * h + tile.spread(dt * x, 1) * row

            h = lax.fori_loop(0, T, step, h)
            plgpu.commit_smem()  # all warps are done with this slot
            return h, total + sum_of_dt

        streams.start()
        A = tile.spread(tile.load(A_ref.at[k, :, channels], 0), 0)
        carry = (tile.zeros(), tile.zeros(1))
        h, total = lax.fori_loop(0, end - first, walk_chunk, carry)
        ends_ref[images, k, s, :, channels] = h
        total_ref[images, k, s, channels] = total

    shape = jax.ShapeDtypeStruct
    vector = (IMAGES, T, CHANNELS)
    scratch = {
        "x_s": plgpu.SMEM((SLOTS, *vector), p.dtype),
        "packed_s": plgpu.SMEM((SLOTS, IMAGES, T, p.packed), jnp.float32),
        "dt_s": plgpu.SMEM(vector, jnp.float32),
        "barrier": plgpu.Barrier(num_arrivals=3 if reads_steps else 2, num_barriers=SLOTS),
    }
    if reads_steps:
        scratch["step_s"] = plgpu.SMEM((SLOTS, *vector), p.step_dtype)
    return kernel(
        body,
        out_type=[
            shape((p.b, p.k, segments, STATES, p.d), jnp.float32),
            shape((p.b, p.k, segments, p.d), jnp.float32),
        ],
        scratch_types=scratch,
        interpret=interpret,
        grid=(p.tiles, p.k, p.b // IMAGES, segments),
        grid_names=("d", "k", "b", "s"),
    )


def chain_ends(
    tile: TileOps,
    A: jax.Array,
    ends_ref: Ref,
    totals_ref: Ref,
    channels: Any,
    begin: int,
    count: Index,
) -> jax.Array:
    """Returns, in a kernel, the state that enters a segment, a tile in registers.

    The state is chained through the segments before it: each multiplies it by its decay and adds
    the state that it ends with after a start from 0.

    Args:
      tile, A: the kernel's tile and its decays, scaled by log2(e).
      ends_ref, totals_ref: the results of `make_segment_ends` at this kernel's images and
        direction.
      channels: the tile's channels.
      begin: the first segment of the chain: 0, or the last one in the adjoint.
      count: the number of segments in the chain, which goes up from 0, or down in the adjoint.
    """

    def enter(i, h):
        segment = begin - i if begin else i
        total = tile.load(totals_ref.at[:, segment, channels], 1)
        end = tile.load(ends_ref.at[:, segment, :, channels])
        return jnp.exp2(tile.spread(total, 1) * A) * h + end

    return lax.fori_loop(0, count, enter, tile.zeros())
