"""The backward kernel: gradients of everything, from the boundary states and dy."""

import jax
import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.pallas_gpu.mosaic import BY_BOTH, TileOps, by_channel, kernel, pl, plgpu
from medmamba_jax.ops.pallas_gpu.problem import CHANNELS, IMAGES, STATES, Problem
from medmamba_jax.ops.pallas_gpu.segments import chain_ends
from medmamba_jax.ops.pallas_gpu.staging import StepSizes, sigmoid_of_softplus
from medmamba_jax.ops.pallas_gpu.streams import SLOTS, Streams, at_pixels, send
from medmamba_jax.ops.pallas_gpu.walk import Walk

LN_2 = 0.6931471805599453  # A comes scaled by log2(e): gradients through the exponent lose it again


def make_backward(problem: Problem, *, interpret: bool):
    """Builds backward(dy, u, packed, step, bias, A, D, states[, ends, totals]) -> gradients.

    Equivalent, for every image and direction k, walking its order backwards, to::

        for t in reversed(range(l)):
            a = exp(dt[t] * A)
            dh += C[t] * dy[t]
            dC[t] = (dy[t] * h[t]).sum(d)
            dB[t] = (dh * dt[t] * u[t]).sum(d)
            d_drive = (dh * B[t]).sum(n)                  # gradient of dt[t] * u[t]
            d_exponent = dh * h[t-1] * a                  # gradient of dt[t] * A
            dA += d_exponent * dt[t]
            d_dt = d_drive * u[t] + (d_exponent * A).sum(n)
            du[t] = d_drive * dt[t] + D * dy[t]
            d_step[t] = d_dt * sigmoid(step[t] + bias)    # = d_dt * (1 - exp(-dt)); the softplus
            d_bias += d_step[t]
            dh *= a

    h comes from a chunk's boundary state: pass A walks the chunk forward, writes dC and keeps every
    second state in shared memory; pass B goes back over pairs of steps, makes the two decays and
    states of a pair again from the kept one, and writes dB and the sums over states; the epilogue
    forms du and d_step. h[t-1] is never recovered from h[t], nothing is divided. A warp has one
    image's tile as 4 x 8 lanes (mosaic.py), which makes the sums over channels cheap. Sums over
    channels outside the tile and over images happen outside, in a fixed order: no atomics, and
    two runs give the same bits. The floor is the issue rate: some 250 instructions for each step
    of a tile (docs/kernels.md counts them).

    Arrays as in `make_forward`; dy like the map, (b, h, w, d) or (b, h, w, k, d); ends and totals,
    with several segments, of the adjoint `make_segment_ends`. Returns du (b, h, w, k, d) in u's
    dtype, and in float32 d_step (b, h, w, k, d); dB and dC side by side
    (b, h, w, k, tiles * 2n), a part for each tile of channels; dA (b, k, segments, n, d), dD and
    d_bias (b, k, segments, d), a part for each image.
    """
    p, cut = problem, problem.config
    walk = Walk(p, cut.chunk)
    T, W, segmented, reads_steps = walk.chunk, cut.warpgroups, cut.backward_segments > 1, not p.rank
    narrow = jnp.dtype(p.dtype).itemsize < 4
    pairs = T // 2
    groups = p.tiles * (p.b // IMAGES)  # tiles of channels and images, dealt to warpgroups

    def body(*refs, barrier, step_s=None, du_s=None, **scratch):
        dy_ref, u_ref, packed_ref, step_ref, bias_ref, A_ref, D_ref, states_ref, *refs = refs
        ends_refs = (refs.pop(0), refs.pop(0)) if segmented else None
        du_ref, dstep_ref, dBC_ref, dA_ref, dD_ref, dbias_ref = refs

        me = lax.axis_index("warpgroup")
        k, s = lax.axis_index("k"), lax.axis_index("s")
        group = lax.axis_index("group") * W + me
        d = lax.rem(group, p.tiles)
        images = pl.ds(lax.div(group, p.tiles) * IMAGES, IMAGES)
        channels = pl.ds(d * CHANNELS, CHANNELS)
        dy_s, u_s, packed_s, stash, vectors_s, dBC_s, sums_s = (
            scratch[name].at[me]
            for name in "dy_s u_s packed_s stash vectors_s dBC_s sums_s".split()
        )
        dt_s, drive_s, exponent_s = (vectors_s.at[i] for i in range(3))
        step_s = step_s.at[me] if reads_steps else None
        du_s = du_s.at[me] if narrow else drive_s  # what leaves by bulk copy

        tile = TileOps(interpret, BY_BOTH)
        lane = TileOps(interpret, by_channel())
        first, end = walk.segment(k, s, cut.backward_segments)
        A = tile.spread(tile.load(A_ref.at[k, :, channels], 0), 0)

        own = (channels,) if p.four_orders else (k, channels)
        arrays = [(at_pixels(u_ref, images, *own), u_s), (at_pixels(dy_ref, images, *own), dy_s)]
        arrays.append((at_pixels(packed_ref, images, k), packed_s))
        if reads_steps:
            arrays.append((at_pixels(step_ref, images, k, channels), step_s))
        streams = Streams(
            walk,
            k,
            barrier,
            arrays,
            chunk_at=lambda j: end - 1 - j,
            count=end - first,
            mine=SLOTS * me,
        )

        def boundary_state(c):
            return tile.load(states_ref.at[images, k, c, d])

        def walk_chunk(j, carry):
            dh, dA, h = carry
            c, slot = end - 1 - j, streams.wait(j)
            weight_ref = None if reads_steps else step_ref.at[k, :, channels]
            steps = StepSizes(p, weight_ref, bias_ref.at[k, channels], interpret)
            step_slot = step_s.at[slot] if reads_steps else None
            real_pixels = walk.real_pixels(k, c)
            steps.stage(T, packed_s.at[slot], step_slot, dt_s, real_pixels)
            D = lane.vectors(lane.load(D_ref.at[k, channels], 0, 1))
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the last chunk's gradients have left
            tile.base.warp_barrier()

            def vectors(ops, t):
                dt = ops.load(dt_s.at[:, t], 1)
                u = ops.load(u_s.at[slot, :, t], 1).astype(jnp.float32)
                return dt, u, ops.load(dy_s.at[slot, :, t], 1).astype(jnp.float32)

            def B(t):
                return tile.spread(tile.load(packed_s.at[slot, :, t, p.B], 2), 2)

            def C(t):
                return tile.spread(tile.load(packed_s.at[slot, :, t, p.C], 2), 2)

            def advance(i, h):
                """Step i's decay a, a * h and the new state."""
                t = walk.pixel(k, i)
                dt, u, _ = vectors(tile, t)
                a = jnp.exp2(tile.spread(dt, 1) * A)
                decayed = a * h
                return a, decayed, decayed + tile.spread(dt * u, 1) * B(t)

            def pass_a(i, h):
                _, _, h = advance(i, h)
                t = walk.pixel(k, i)
                _, _, dy = vectors(tile, t)
                dC = tile.base.sum_over_channels(h * tile.spread(dy, 1))
                dBC_s[:, t, pl.ds(STATES, STATES)] = dC
                return h

            def pass_a_pair(i, h):
                stash[i] = h
                return pass_a(2 * i + 1, pass_a(2 * i, h))

            def pass_b(i, a, decayed, dh, dA):
                t = walk.pixel(k, i)
                dt, u, dy = vectors(tile, t)
                dh = dh + tile.spread(dy, 1) * C(t)
                dB = tile.base.sum_over_channels(dh * tile.spread(dt * u, 1))
                dBC_s[:, t, pl.ds(0, STATES)] = dB
                drive_s[:, t] = tile.base.sum_over_states(dh * B(t))
                d_exponent = dh * decayed
                exponent_s[:, t] = tile.base.sum_over_states(d_exponent * A)
                return dh * a, dA + d_exponent * tile.spread(dt, 1)

            def pass_b_pair(j, carry):
                i = pairs - 1 - j
                a0, decayed0, h = advance(2 * i, tile.load(stash.at[i]))
                a1, decayed1, _ = advance(2 * i + 1, h)
                return pass_b(2 * i, a0, decayed0, *pass_b(2 * i + 1, a1, decayed1, *carry))

            h = lax.fori_loop(0, pairs, pass_a_pair, h)
            if T % 2:
                stash[pairs] = h
                pass_a(T - 1, h)
                a, decayed, _ = advance(T - 1, tile.load(stash.at[pairs]))
                dh, dA = pass_b(T - 1, a, decayed, dh, dA)
            dh, dA = lax.fori_loop(0, pairs, pass_b_pair, (dh, dA))
            h = boundary_state(jnp.maximum(c - 1, 0))  # arrives behind the epilogue
            tile.base.warp_barrier()

            def epilogue(t, sums):
                dD, dbias = sums
                dt, u, dy = vectors(lane, t)
                d_drive, d_exponent = (
                    lane.load(drive_s.at[:, t], 1),
                    lane.load(exponent_s.at[:, t], 1),
                )
                du_s[:, t] = (d_drive * dt + dy * D).astype(p.dtype)
                d_dt = d_exponent * LN_2 + d_drive * u
                if p.softplus:
                    d_step = d_dt * sigmoid_of_softplus(dt)  # 0 past the real pixels, like dt
                else:
                    d_step = d_dt if real_pixels is None else d_dt * (t < real_pixels)
                exponent_s[:, t] = d_step
                return dD + dy * u, dbias + d_step

            # In shared memory between chunks: registers more would spill.
            sums = (lane.load(sums_s.at[0], 1), lane.load(sums_s.at[1], 1))
            sums_s[0], sums_s[1] = lax.fori_loop(0, T, epilogue, sums, unroll=True)
            plgpu.commit_smem()

            part = pl.ds(d * 2 * STATES, 2 * STATES)
            send(
                walk,
                k,
                c,
                [
                    (du_s, at_pixels(du_ref, images, k, channels)),
                    (exponent_s, at_pixels(dstep_ref, images, k, channels)),
                    (dBC_s, at_pixels(dBC_ref, images, k, part)),
                ],
            )
            return dh, dA, h

        @pl.when(group < groups)
        def _():
            streams.start()
            dh = tile.zeros()
            if segmented:
                ends = (ref.at[images, k] for ref in ends_refs)
                last = cut.backward_segments - 1
                dh = chain_ends(tile, A, *ends, channels, last, last - s)
            sums_s[0] = sums_s[1] = lane.zeros(1)
            carry = (dh, tile.zeros(), boundary_state(jnp.maximum(end - 1, 0)))
            _, dA, _ = lax.fori_loop(0, end - first, walk_chunk, carry)
            dA_ref[images, k, s, :, channels] = dA
            dD_ref[images, k, s, channels] = lane.load(sums_s.at[0], 1)
            dbias_ref[images, k, s, channels] = lane.load(sums_s.at[1], 1)
            plgpu.wait_smem_to_gmem(0)

    def shared(*axes, dtype=jnp.float32):
        return plgpu.SMEM((W, *axes), dtype)

    shape = jax.ShapeDtypeStruct
    h, w = p.padded
    vector = (IMAGES, T, CHANNELS)
    scratch = {
        "barrier": plgpu.Barrier(num_arrivals=4 if reads_steps else 3, num_barriers=SLOTS * W),
        "dy_s": shared(SLOTS, *vector, dtype=p.dtype),
        "u_s": shared(SLOTS, *vector, dtype=p.dtype),
        "packed_s": shared(SLOTS, IMAGES, T, p.packed),
        "stash": shared(pairs + T % 2, IMAGES, STATES, CHANNELS),
        "vectors_s": shared(3, *vector),  # one array: each is padded to a KiB
        "dBC_s": shared(IMAGES, T, 2 * STATES),
        "sums_s": shared(2, IMAGES, CHANNELS),
    }
    if reads_steps:
        scratch["step_s"] = shared(SLOTS, *vector, dtype=p.step_dtype)
    if narrow:
        scratch["du_s"] = shared(*vector, dtype=p.dtype)
    return kernel(
        body,
        out_type=[
            shape((p.b, h, w, p.k, p.d), p.dtype),
            shape((p.b, h, w, p.k, p.d), jnp.float32),
            shape((p.b, h, w, p.k, p.tiles * 2 * STATES), jnp.float32),
            shape((p.b, p.k, cut.backward_segments, STATES, p.d), jnp.float32),
            shape((p.b, p.k, cut.backward_segments, p.d), jnp.float32),
            shape((p.b, p.k, cut.backward_segments, p.d), jnp.float32),
        ],
        scratch_types=scratch,
        interpret=interpret,
        grid=(-(-groups // W), p.k, cut.backward_segments),
        grid_names=("group", "k", "s"),
        num_threads=W,
        thread_name="warpgroup",
    )
