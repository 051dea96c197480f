"""The forward kernel: the outputs, and the boundary states where the backward pass starts."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.pallas_gpu.mosaic import TileOps, by_channel, kernel, pl, plgpu
from medmamba_jax.ops.pallas_gpu.problem import CHANNELS, IMAGES, STATES, Problem
from medmamba_jax.ops.pallas_gpu.segments import chain_ends
from medmamba_jax.ops.pallas_gpu.staging import StepSizes
from medmamba_jax.ops.pallas_gpu.streams import SLOTS, Streams, at_pixels, inputs, send
from medmamba_jax.ops.pallas_gpu.walk import Walk


def make_forward(
    problem: Problem, *, outputs: bool, states: bool, interpret: bool
) -> Callable[..., Sequence[jax.Array]]:
    """Builds forward(u, packed, step, bias, A, D[, ends, totals]) -> [y][, boundary states].

    Equivalent, for every image and direction k walked in its order, to::

        for t in range(l):
            dt = softplus(step[t] + bias)          # step[t] = low_rank[t] @ weight with a rank
            h = exp(dt * A) * h + dt * u[t] * B[t]
            y[t] = (C[t] * h).sum(n) + D * u[t]    # written to the place of pixel t on the map

    One warp walks the 32 channels of one image. Registers: a lane has one channel. Its 16 states h
    and 16 decays A stay in registers for the whole walk, because every step needs all of them. The
    values of single pixels are in shared memory. Bulk copies bring chunks of a line into two slots,
    the next chunk during the walk over the present one, and bulk copies write y.

    Numerics: all arithmetic is float32; y is rounded to its dtype once. exp is one ex2 for each
    state update, with an error of 2 units in the last place (A is already scaled by log2(e)). The
    relative error of softplus is 1e-6. Nothing is divided.

    Speed: ex2 sets the floor. The kernel needs b * l * k * d * n of them, and each multiprocessor
    computes 16 a clock.

    Args:
      problem: the static shape.
      outputs: whether the kernel writes y.
      states: whether the kernel writes the boundary states.
      interpret: whether the kernel runs in the interpreter.

    The arrays are u (b, h, w, d), or (b, h, w, k, d) for a bare scan; packed (b, h, w, k, p) in
    float32; step, the projection's weights (k, rank, d) or step sizes (b, h, w, k, d); bias and D
    (k, d); A (k, n, d); with several segments, ends and totals of `make_segment_ends`. The results
    are y (b, h, w, k, d) and the boundary states (b, k, boundaries, tiles, n, 32), each of them the
    state before a backward chunk, in one piece for a tile, in u's dtype. h and w are the padded
    sides.
    """
    p, cut = problem, problem.config
    walk = Walk(p, cut.forward_chunk)
    T, segmented, reads_steps = walk.chunk, cut.forward_segments > 1, not p.rank

    def body(*refs, u_s, packed_s, dt_s, barrier, y_s=None, step_s=None):
        u_ref, packed_ref, step_ref, bias_ref, A_ref, D_ref, *refs = refs
        ends_refs = (refs.pop(0), refs.pop(0)) if segmented else None
        y_ref = refs.pop(0) if outputs else None
        states_ref = refs.pop(0) if states else None

        k, s, d = lax.axis_index("k"), lax.axis_index("s"), lax.axis_index("d")
        images = pl.ds(lax.axis_index("b") * IMAGES, IMAGES)
        channels = pl.ds(d * CHANNELS, CHANNELS)
        tile = TileOps(interpret, by_channel())
        first, end = walk.segment(k, s, cut.forward_segments)

        A = tile.spread(tile.load(A_ref.at[k, :, channels], 0), 0)

        arrays = inputs(
            p,
            images,
            k,
            channels,
            maps=[(u_ref, u_s)],
            packed=(packed_ref, packed_s),
            step=(step_ref, step_s),
        )
        streams = Streams(walk, k, barrier, arrays, chunk_at=lambda j: first + j, count=end - first)

        def walk_chunk(j, h):
            """Stages the step sizes, takes the chunk's steps and sends its outputs away."""
            c, slot = first + j, streams.wait(j)
            step_slot = step_s.at[slot] if reads_steps else None
            steps = StepSizes(p, step_ref, bias_ref, k, channels, interpret)
            steps.stage(T, packed_s.at[slot], step_slot, dt_s, walk.real_pixels(k, c))
            D = tile.vectors(tile.load(D_ref.at[k, channels], 0, 1)) if outputs else None
            tile.base.warp_barrier()

            def step(i, h):
                """Updates the 16 states of a lane's channel and writes its output."""
                t = walk.pixel(k, i)
                u = tile.load(u_s.at[slot, :, t], 1).astype(jnp.float32)
                dt = tile.load(dt_s.at[:, t], 1)
                B = tile.load(packed_s.at[slot, :, t, p.B], 2)
                a = jnp.exp2(tile.spread(dt, 1) * A)
                h = a * h + tile.spread(dt * u, 1) * tile.spread(B, 2)
                if outputs:
                    C = tile.load(packed_s.at[slot, :, t, p.C], 2)
                    y = tile.dot_rows(h, tile.spread(C, 2)) + D * u
                    y_s[slot, :, t] = y.astype(p.dtype)
                return h

            for part in range(cut.forward_chunks):
                if states:
                    boundary = c * cut.forward_chunks + part
                    tile.store(h.astype(p.dtype), states_ref.at[images, k, boundary, d])
                h = lax.fori_loop(part * cut.chunk, (part + 1) * cut.chunk, step, h)
            plgpu.commit_smem()  # all warps are done with this slot, and y is there to be copied
            if outputs:
                send(walk, k, c, [(y_s.at[slot], at_pixels(y_ref, images, k, channels))])
                plgpu.wait_smem_to_gmem(SLOTS - 1, wait_read_only=True)  # the next slot is free
            return h

        streams.start()
        h = tile.zeros()
        if segmented:
            h = chain_ends(tile, A, *(ref.at[images, k] for ref in ends_refs), channels, 0, s)
        lax.fori_loop(0, end - first, walk_chunk, h)
        if outputs:
            plgpu.wait_smem_to_gmem(0)

    shape = jax.ShapeDtypeStruct
    h, w = p.padded
    out_type = [shape((p.b, h, w, p.k, p.d), p.dtype)] if outputs else []
    if states:
        out_type.append(shape((p.b, p.k, p.boundaries, p.tiles, STATES, CHANNELS), p.dtype))
    vector = (IMAGES, T, CHANNELS)
    scratch = {
        "u_s": plgpu.SMEM((SLOTS, *vector), p.dtype),
        "packed_s": plgpu.SMEM((SLOTS, IMAGES, T, p.packed), jnp.float32),
        "dt_s": plgpu.SMEM(vector, jnp.float32),
        "barrier": plgpu.Barrier(num_arrivals=3 if reads_steps else 2, num_barriers=SLOTS),
    }
    if outputs:
        scratch["y_s"] = plgpu.SMEM((SLOTS, *vector), p.dtype)
    if reads_steps:
        scratch["step_s"] = plgpu.SMEM((SLOTS, *vector), p.step_dtype)
    return kernel(
        body,
        out_type=out_type,
        scratch_types=scratch,
        interpret=interpret,
        grid=(p.tiles, p.k, p.b // IMAGES, cut.forward_segments),
        grid_names=("d", "k", "b", "s"),
    )
