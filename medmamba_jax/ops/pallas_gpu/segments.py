"""Running a sequence's segments at the same time: what each hands to the next."""

import jax
import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.pallas_gpu.mosaic import TileOps, by_channel, kernel, pl, plgpu
from medmamba_jax.ops.pallas_gpu.problem import CHANNELS, IMAGES, STATES, Problem
from medmamba_jax.ops.pallas_gpu.staging import StepSizes
from medmamba_jax.ops.pallas_gpu.streams import SLOTS, Streams, at_pixels
from medmamba_jax.ops.pallas_gpu.walk import Walk


def make_segment_ends(problem: Problem, *, adjoint: bool, interpret: bool):
    """Builds segment_ends(x, packed, step, bias, A) -> (ends, totals of dt).

    Equivalent, for every image, direction and segment, to the recurrence from a state of 0::

        for t in segment:                      # x is u
            h = exp(dt[t] * A) * h + dt[t] * u[t] * B[t]
        for t in reversed(segment):            # adjoint: x is dy
            h = exp(dt[t] * A) * (h + dy[t] * C[t])

    and the sum of dt, since the segment multiplies what enters it by exp(sum(dt) * A). Arrays as in
    `make_forward`; ends (b, k, segments, n, d), total (b, k, segments, d), float32.
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

        own = (channels,) if p.four_orders else (k, channels)
        arrays = [(at_pixels(x_ref, images, *own), x_s)]
        arrays.append((at_pixels(packed_ref, images, k), packed_s))
        if reads_steps:
            arrays.append((at_pixels(step_ref, images, k, channels), step_s))
        streams = Streams(walk, k, barrier, arrays, chunk_at=chunk_at, count=end - first)

        def walk_chunk(j, carry):
            h, total = carry
            c, slot = chunk_at(j), streams.wait(j)

            weight_ref = None if reads_steps else step_ref.at[k, :, channels]
            steps = StepSizes(p, weight_ref, bias_ref.at[k, channels], interpret)
            step_slot = step_s.at[slot] if reads_steps else None
            sum_of_dt = steps.stage(T, packed_s.at[slot], step_slot, dt_s, walk.real_pixels(k, c))
            tile.base.warp_barrier()

            def step(i, h):
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


def chain_ends(tile: TileOps, A, ends_ref, totals_ref, channels, begin, count):
    """In a kernel: what enters a segment, given what each segment makes of a start from 0.

    Args:
      tile, A: the kernel's tile and its decays, scaled by log2(e).
      ends_ref, totals_ref: of `make_segment_ends`, at this kernel's images and direction.
      channels: the tile's channels.
      begin, count: the first segment that the kernel's depends on, and how many do; they follow
        each other upwards from 0, or downwards from the last in the adjoint.
    """

    def enter(i, h):
        segment = begin - i if begin else i
        total = tile.load(totals_ref.at[:, segment, channels], 1)
        end = tile.load(ends_ref.at[:, segment, :, channels])
        return jnp.exp2(tile.spread(total, 1) * A) * h + end

    return lax.fori_loop(0, count, enter, tile.zeros())
