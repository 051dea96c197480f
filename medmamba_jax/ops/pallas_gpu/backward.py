"""The backward kernel: the gradients of all inputs, from the boundary states and dy."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.pallas_gpu.mosaic import BY_BOTH, TileOps, by_channel, kernel, pl, plgpu
from medmamba_jax.ops.pallas_gpu.problem import CHANNELS, IMAGES, STATES, Problem
from medmamba_jax.ops.pallas_gpu.segments import chain_ends
from medmamba_jax.ops.pallas_gpu.staging import StepSizes, sigmoid_of_softplus
from medmamba_jax.ops.pallas_gpu.streams import SLOTS, Streams, at_pixels, inputs, send
from medmamba_jax.ops.pallas_gpu.walk import Walk

# A is already scaled by log2(e), so gradients through the exponent lack this factor.
LN_2 = 0.6931471805599453


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """The work of one warpgroup on a chunk of T steps. Each of its warps has one image.

    The number of registers determines the division into passes. In the layout BY_BOTH a lane has 4
    states x 4 channels, so each array of the tile's size (A, the state h, its gradient dh, dA, a
    decay) takes 16 of a lane's 168 registers. The values of one step and one channel (dt, u, dy)
    are in shared memory and take 4 registers. The sums over channels and over states go to shared
    memory at once.

    Attributes:
      walk, k: the walk and its direction.
      slot: where the streams have put this chunk in u_s, dy_s and packed_s.
      tile, lane: operations in the layout BY_BOTH, and with one channel in each lane.
      A: the decays, scaled by log2(e), a tile in registers for the whole walk.
      u_s, dy_s, packed_s: input in shared memory: u and dy (slots, 4, T, 32), packed rows.
      dt_s: step sizes (4, T, 32).
      stash: every second state, (ceil(T / 2), 4, 16, 32).
      drive_s, exponent_s: sums over states, (4, T, 32): the gradients of dt * u and of log2 of the
        decay; the epilogue overwrites exponent_s with d_step, and drive_s where du_s is the same.
      dbc_s: dB and dC side by side, (4, T, 2 * 16).
      du_s: du (4, T, 32) in u's dtype.
      sums_s: dD and d_bias so far, (2, 4, 32).
    """

    walk: Walk
    k: Any
    slot: Any
    tile: TileOps
    lane: TileOps
    A: Any
    u_s: Any
    dy_s: Any
    packed_s: Any
    dt_s: Any
    stash: Any
    drive_s: Any
    exponent_s: Any
    dbc_s: Any
    du_s: Any
    dstep_s: Any
    sums_s: Any

    @property
    def pairs(self) -> int:
        """The number of pairs of steps; the last step of an odd chunk has no partner."""
        return self.walk.chunk // 2

    def pass_a(self, h):
        """Walks forward from the boundary state h, writes dC and stashes every second state.

        Registers: A, h and one product of the tile's size. Pass B needs the states from the last
        to the first. All states fit neither in registers nor, with three warpgroups, in shared
        memory. Every second state fits, and one step from it computes the state between.
        """

        def step(i, h):
            _, _, h = self._advance(i, h)
            t = self.walk.pixel(self.k, i)
            _, _, dy = self._vectors(self.tile, t)
            dC = self.tile.base.sum_over_channels(h * self.tile.spread(dy, 1))
            self.dbc_s[:, t, pl.ds(STATES, STATES)] = dC.astype(self.walk.problem.dtype)
            return h

        def pair(i, h):
            self.stash[i] = h
            return step(2 * i + 1, step(2 * i, h))

        h = lax.fori_loop(0, self.pairs, pair, h)
        if self.walk.chunk % 2:
            self.stash[self.pairs] = h
            step(self.walk.chunk - 1, h)

    def pass_b(self, dh, dA):
        """Walks back over pairs of steps; writes dB, d_drive and d_exponent; returns dh and dA.

        Registers: A, dh and dA, and for each step of a pair its decay a and a * h[t-1], computed
        again from the stashed state. These are seven arrays of the tile's size, 112 of the 168
        registers. The gradient of the exponent needs only the product a * h[t-1], so h[t-1] itself
        is not kept.
        """

        def step(i, a, decayed, dh, dA):
            t = self.walk.pixel(self.k, i)
            dt, u, dy = self._vectors(self.tile, t)
            dh = dh + self.tile.spread(dy, 1) * self._C(t)
            dB = self.tile.base.sum_over_channels(dh * self.tile.spread(dt * u, 1))
            self.dbc_s[:, t, pl.ds(0, STATES)] = dB.astype(self.walk.problem.dtype)
            self.drive_s[:, t] = self.tile.base.sum_over_states(dh * self._B(t))
            d_exponent = dh * decayed
            self.exponent_s[:, t] = self.tile.base.sum_over_states(d_exponent * self.A)
            return dh * a, dA + d_exponent * self.tile.spread(dt, 1)

        def pair(j, carry):
            i = self.pairs - 1 - j
            a0, decayed0, h = self._advance(2 * i, self.tile.load(self.stash.at[i]))
            a1, decayed1, _ = self._advance(2 * i + 1, h)
            return step(2 * i, a0, decayed0, *step(2 * i + 1, a1, decayed1, *carry))

        if self.walk.chunk % 2:
            last = self.walk.chunk - 1
            a, decayed, _ = self._advance(last, self.tile.load(self.stash.at[self.pairs]))
            dh, dA = step(last, a, decayed, dh, dA)
        return lax.fori_loop(0, self.pairs, pair, (dh, dA))

    def epilogue(self, D, real_pixels):
        """Forms du and d_step of each step from the sums over states, and adds to dD and d_bias.

        Registers: one channel in each lane, so each vector of a step takes one. dD and d_bias stay
        in shared memory between chunks; two more registers through passes A and B would spill.
        """
        p, lane = self.walk.problem, self.lane

        def step(t, sums):
            dD, dbias = sums
            dt, u, dy = self._vectors(lane, t)
            d_drive, d_exponent = (
                lane.load(self.drive_s.at[:, t], 1),
                lane.load(self.exponent_s.at[:, t], 1),
            )
            self.du_s[:, t] = (d_drive * dt + dy * D).astype(p.dtype)
            d_dt = d_exponent * LN_2 + d_drive * u
            if p.softplus:
                d_step = d_dt * sigmoid_of_softplus(dt)  # 0 past the real pixels, like dt
            else:
                d_step = d_dt if real_pixels is None else d_dt * (t < real_pixels)
            self.dstep_s[:, t] = d_step.astype(p.dstep_dtype)
            return dD + dy * u, dbias + d_step

        sums = (lane.load(self.sums_s.at[0], 1), lane.load(self.sums_s.at[1], 1))
        sums = lax.fori_loop(0, self.walk.chunk, step, sums, unroll=True)
        self.sums_s[0], self.sums_s[1] = sums

    def _advance(self, i, h):
        """Returns step i's decay a, a * h and the new state."""
        t = self.walk.pixel(self.k, i)
        dt, u, _ = self._vectors(self.tile, t)
        a = jnp.exp2(self.tile.spread(dt, 1) * self.A)
        decayed = a * h
        return a, decayed, decayed + self.tile.spread(dt * u, 1) * self._B(t)

    def _vectors(self, ops: TileOps, t):
        """Returns dt, u and dy of pixel t, (4, 32) in float32, in the layout of `ops`."""
        dt = ops.load(self.dt_s.at[:, t], 1)
        u = ops.load(self.u_s.at[self.slot, :, t], 1).astype(jnp.float32)
        return dt, u, ops.load(self.dy_s.at[self.slot, :, t], 1).astype(jnp.float32)

    def _B(self, t):
        row = self.packed_s.at[self.slot, :, t, self.walk.problem.B]
        return self.tile.spread(self.tile.load(row, 2), 2)

    def _C(self, t):
        row = self.packed_s.at[self.slot, :, t, self.walk.problem.C]
        return self.tile.spread(self.tile.load(row, 2), 2)


def make_backward(problem: Problem, *, interpret: bool) -> Callable[..., Sequence[jax.Array]]:
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
            dD += dy[t] * u[t]
            d_step[t] = d_dt * sigmoid(step[t] + bias)    # = d_dt * (1 - exp(-dt)); the softplus
            d_bias += d_step[t]
            dh *= a

    The kernel takes a direction's chunks from the last to the first, and for each chunk runs
    `_Chunk.pass_a`, `_Chunk.pass_b` and `_Chunk.epilogue`. A warp has one image's tile as 4 x 8
    lanes (mosaic.py), which makes the sums over channels cheap.

    Numerics: float32 throughout; du, d_step, dB and dC are rounded to their dtypes once. h comes
    from a chunk's boundary state and is never recovered from a later state, and nothing is divided.
    exp is ex2, 2 units in the last place; the softplus's derivative is right to 1e-6 of itself.
    Sums over channels outside the tile and over images are made outside the kernel in a fixed
    order. There are no atomics, so two runs give the same bits.

    Speed: the floor is the issue rate, some 250 instructions for each step of a tile
    (docs/kernels.md counts them).

    Args:
      problem: the static shape.
      interpret: whether the kernel runs in the interpreter.

    The arrays are those of `make_forward`, and: dy like the map, (b, h, w, d) or (b, h, w, k, d);
    with several segments, ends and totals of the adjoint `make_segment_ends`. The results are du
    (b, h, w, k, d) in u's dtype; d_step (b, h, w, k, d), in the dtype of the step sizes if the
    kernel reads them, else in u's dtype; dB and dC side by side, (b, h, w, k, tiles * 2n), a part
    for each tile of channels, in u's dtype; and in float32 dA (b, k, segments, n, d), dD and d_bias
    (b, k, segments, d), a part for each image and segment.
    """
    p, cut = problem, problem.config
    walk = Walk(p, cut.chunk)
    T, W, segmented, reads_steps = walk.chunk, cut.warpgroups, cut.backward_segments > 1, not p.rank
    narrow, narrow_step = p.dtype.itemsize < 4, p.dstep_dtype.itemsize < 4
    pairs = T // 2
    groups = p.tiles * (p.b // IMAGES)  # tiles of channels and images; a warpgroup takes one

    def body(*refs, barrier, step_s=None, du_s=None, dstep_s=None, **scratch):
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
        # A bulk copy needs du and d_step in their own dtypes. A float32 du takes the place of
        # d_drive, and a float32 d_step that of d_exponent; narrow ones have memory of their own.
        du_s = du_s.at[me] if narrow else drive_s
        dstep_s = dstep_s.at[me] if narrow_step else exponent_s

        # Registers for the whole walk: A, and in the carry dh, dA and the next boundary state.
        tile = TileOps(interpret, BY_BOTH)
        lane = TileOps(interpret, by_channel())
        first, end = walk.segment(k, s, cut.backward_segments)
        A = tile.spread(tile.load(A_ref.at[k, :, channels], 0), 0)

        arrays = inputs(
            p,
            images,
            k,
            channels,
            maps=[(u_ref, u_s), (dy_ref, dy_s)],
            packed=(packed_ref, packed_s),
            step=(step_ref, step_s),
        )
        streams = Streams(
            walk,
            k,
            barrier,
            arrays,
            chunk_at=lambda j: end - 1 - j,
            count=end - first,
            mine=SLOTS * me,
        )

        def boundary_state(c):  # the state before chunk c
            return tile.load(states_ref.at[images, k, c, d]).astype(jnp.float32)

        def walk_chunk(j, carry):
            """Stages the step sizes, runs the passes and sends the chunk's gradients away."""
            dh, dA, h = carry
            c, slot = end - 1 - j, streams.wait(j)
            step_slot = step_s.at[slot] if reads_steps else None
            steps = StepSizes(p, step_ref, bias_ref, k, channels, interpret)
            real_pixels = walk.real_pixels(k, c)
            steps.stage(T, packed_s.at[slot], step_slot, dt_s, real_pixels)
            D = lane.vectors(lane.load(D_ref.at[k, channels], 0, 1))
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the last chunk's gradients have left
            tile.base.warp_barrier()

            chunk = _Chunk(
                walk=walk,
                k=k,
                slot=slot,
                tile=tile,
                lane=lane,
                A=A,
                u_s=u_s,
                dy_s=dy_s,
                packed_s=packed_s,
                dt_s=dt_s,
                stash=stash,
                drive_s=drive_s,
                exponent_s=exponent_s,
                dbc_s=dBC_s,
                du_s=du_s,
                dstep_s=dstep_s,
                sums_s=sums_s,
            )
            chunk.pass_a(h)
            dh, dA = chunk.pass_b(dh, dA)
            h = boundary_state(jnp.maximum(c - 1, 0))  # arrives while the epilogue runs
            tile.base.warp_barrier()
            chunk.epilogue(D, real_pixels)
            plgpu.commit_smem()

            part = pl.ds(d * 2 * STATES, 2 * STATES)
            send(
                walk,
                k,
                c,
                [
                    (du_s, at_pixels(du_ref, images, k, channels)),
                    (dstep_s, at_pixels(dstep_ref, images, k, channels)),
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
        "vectors_s": shared(3, *vector),  # three in one, since each array is padded to a KiB
        "dBC_s": shared(IMAGES, T, 2 * STATES, dtype=p.dtype),
        "sums_s": shared(2, IMAGES, CHANNELS),
    }
    if reads_steps:
        scratch["step_s"] = shared(SLOTS, *vector, dtype=p.step_dtype)
    if narrow:
        scratch["du_s"] = shared(*vector, dtype=p.dtype)
    if narrow_step:
        scratch["dstep_s"] = shared(*vector, dtype=p.dstep_dtype)
    return kernel(
        body,
        out_type=[
            shape((p.b, h, w, p.k, p.d), p.dtype),
            shape((p.b, h, w, p.k, p.d), p.dstep_dtype),
            shape((p.b, h, w, p.k, p.tiles * 2 * STATES), p.dtype),
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
