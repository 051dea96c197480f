"""The selective scan as Pallas TPU kernels, forward and backward.

Nobody has run them on a TPU. Tests on a CPU run them in interpret mode and lower them to Mosaic.
Ahead-of-time compilation succeeded once, for v4, v5e, v5p and v6e (libtpu 0.0.42.1 and 0.0.50.1).

The state (n, d) is in vector registers, with d in the 128 lanes. The kernel updates it one step at
a time; the states of the single steps never reach memory. The grid is (b, k, blocks of d, blocks of
l). The blocks of l run in order, and scratch memory carries the state from one block to the next.
For one b, one k and one block of d, the forward pass is::

    h = zeros(n, d)
    for t in range(l):
        h = exp(dt[t] * A) * h + (dt[t] * u[t]) * B[t][:, None]
        y[t] = (h * C[t][:, None]).sum(0) + D * u[t]

The forward pass saves only its inputs. The backward pass first walks forward again and writes the
state that enters each block of l. Then it takes the blocks in reverse. It computes a block's states
again, keeps them in scratch memory and walks back through them; dh starts from zeros(n, d)::

    for t in reversed(range(l)):
        a = exp(dt[t] * A)
        dh = dh + C[t][:, None] * dy[t]
        dC[t], dB[t] = (h[t] * dy[t]).sum(1), (dh * dt[t] * u[t]).sum(1)
        d_dtu, d_log_a = (dh * B[t][:, None]).sum(0), dh * h[t - 1] * a
        du[t] = d_dtu * dt[t] + D * dy[t]
        ddt[t] = d_dtu * u[t] + (d_log_a * A).sum(0)
        dA += d_log_a * dt[t]
        dD += dy[t] * u[t]
        dh = a * dh

Numerics: all arithmetic is float32, for inputs of any dtype. Only y and the gradients are rounded,
to the dtypes of their inputs. The code never divides by a decay and never recovers h[t-1] from
h[t], so decays that underflow to 0 stay exact. Sums that cross the grid (dB and dC over blocks of
d, dA and dD over b) are written as partial results and added outside the kernel. There are no
atomics, so two runs give the same bits.

JAX cannot partition a Mosaic kernel: over several TPUs, wrap the call in `jax.shard_map` with
`check_vma=False`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from medmamba_jax.ops.scan.chunks import chunk_length

_SUBLANES, _LANES = 8, 128  # a float32 vector register
_TIME = 3  # the axis of the grid that runs in order
_MAX_STATES = 256
# Steps written out in a loop's body, so that one step's exp overlaps another's. libtpu's schedules
# for a v5e spend a third fewer instructions on a step than with 1, and hardly fewer with 8.
_UNROLL = 4


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The division of l and d into blocks.

    In VMEM, the backward pass holds a block's states, (steps, n, lanes): 3 MiB for 128 steps, 16
    states and 384 lanes. It also holds two buffers each of u, dt, dy, du and ddt, (steps, lanes):
    1.9 MiB, and about 0.2 MiB of smaller arrays with an axis n. The forward pass needs a quarter of
    that. A TPU v5e allows a kernel 16 MiB.

    Attributes:
      steps, lanes: the size of a block along l and along d.
      along_l, along_d: the number of blocks; together they cover l and d, padded.
    """

    steps: int
    lanes: int
    along_l: int
    along_d: int

    @classmethod
    def of(cls, length: int, d: int, n: int) -> "Blocks":
        """Returns blocks of at most 128 steps and 384 lanes whose states fit in 4 MiB."""
        tiles = math.ceil(d / _LANES)
        # Lanes are independent, so the latency of one vector register overlaps with the work on
        # another. In libtpu's schedules for a v5e, three registers together take a third fewer
        # instructions than one after another, although the backward pass spills some.
        along_d = next(tiles // wide for wide in (3, 2, 1) if tiles % wide == 0)
        lanes = tiles // along_d * _LANES
        fit = 2**22 // (4 * _round_up(n, _SUBLANES) * lanes)
        longest = min(128, fit // _SUBLANES * _SUBLANES)
        steps = _round_up(chunk_length(length, longest), _SUBLANES)
        return cls(steps, lanes, math.ceil(length / steps), along_d)


def refusal(*, dtype: DTypeLike, n: int) -> str | None:
    """Returns why the kernels cannot take u's dtype and n states, or None. They take any d."""
    if jnp.dtype(dtype).itemsize > 4:
        return f"the TPU kernel computes in float32, and u is {jnp.dtype(dtype).name}"
    if n > _MAX_STATES:
        return f"the TPU kernel keeps a block's states in VMEM: n={n} is over {_MAX_STATES}"
    return None


def scan_pallas_tpu(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Runs the scan as a TPU kernel; see the module's docstring.

    Args:
      u, dt, A, B, C, D: as for `scan_chunked`.
      interpret: run the kernels as ordinary JAX, on any backend: slow, for tests.

    Raises:
      NotImplementedError: `refusal` has a reason.
    """
    if reason := refusal(dtype=u.dtype, n=A.shape[-1]):
        raise NotImplementedError(reason)
    return _scan(interpret, u, dt, A, B, C, D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(interpret, u, dt, A, B, C, D):
    return _scan_forward(interpret, u, dt, A, B, C, D)[0]


def _scan_forward(interpret, u, dt, A, B, C, D):
    b, l, k, d = u.shape
    blocks = Blocks.of(l, d, A.shape[-1])
    call = _Call(b, k, A.shape[-1], blocks, interpret)
    y = call(
        _forward_kernel,
        call.to_rows(u, dt) + call.to_tiles(A, D) + call.to_columns(B, C),
        ("row", "row", "A", "D", "column", "column"),
        ("row",),
        scratch=((call.n, blocks.lanes),),
    )[0]
    return call.from_rows(y, u), (u, dt, A, B, C, D)


def _scan_backward(interpret, residuals, dy):
    u, dt, A, B, C, D = residuals
    b, l, k, d = u.shape
    blocks = Blocks.of(l, d, A.shape[-1])
    call = _Call(b, k, A.shape[-1], blocks, interpret)
    rows, (A_tiles, D_tiles) = call.to_rows(u, dt, dy), call.to_tiles(A, D)
    columns = call.to_columns(B, C)
    state = (call.n, blocks.lanes)
    (borders,) = call(
        _borders_kernel,
        (*rows[:2], A_tiles, columns[0]),
        ("row", "row", "A", "column"),
        ("border",),
        scratch=(state,),
    )
    du, ddt, dA, dB, dC, dD = call(
        _backward_kernel,
        (*rows, A_tiles, D_tiles, *columns, borders),
        ("row", "row", "row", "A", "D", "column", "column", "border"),
        ("row", "row", "dA", "partial column", "partial column", "dD"),
        scratch=((blocks.steps, *state), state),
        reverse=True,
    )
    return (
        call.from_rows(du, u),
        call.from_rows(ddt, dt),
        dA.sum(0)[..., :d].swapaxes(1, 2).astype(A.dtype),
        call.from_columns(dB, B),
        call.from_columns(dC, C),
        dD.sum(0)[:, 0, :d].astype(D.dtype),
    )


_scan.defvjp(_scan_forward, _scan_backward)


@dataclasses.dataclass(frozen=True)
class _Call:
    """The shared grid of the three kernels, and the layouts of the arrays on it.

    A row holds the values of one step along d, (1, lanes). A column holds the values of one step
    along n, (n, 1), so that the state can multiply it without a transpose. Columns lie side by
    side, (n, steps), so that memory needs no padding lanes for each of them.
    """

    b: int
    k: int
    n: int
    blocks: Blocks
    interpret: bool

    def __call__(self, kernel, inputs, in_names, out_names, *, scratch, reverse=False):
        layouts = self._layouts(reverse)
        return pl.pallas_call(
            kernel,
            grid=(self.b, self.k, self.blocks.along_d, self.blocks.along_l),
            in_specs=[layouts[name][1] for name in in_names],
            out_specs=[layouts[name][1] for name in out_names],
            out_shape=[jax.ShapeDtypeStruct(layouts[name][0], jnp.float32) for name in out_names],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
            ),
            interpret=self.interpret,
            name="selective_scan" + kernel.__name__.removesuffix("_kernel"),
        )(*inputs)

    def _layouts(self, reverse):
        """Returns the shape and the blocks of every array; `reverse` takes l from its end."""
        b, k, n, blocks = self.b, self.k, self.n, self.blocks
        steps, lanes, along_l, along_d = dataclasses.astuple(blocks)
        length, d = along_l * steps, along_d * lanes

        def at(t):
            return along_l - 1 - t if reverse else t

        one = None  # an axis that the kernel's block does not have
        layouts = {
            "row": (
                (b, length, k * d),
                (one, steps, lanes),
                lambda b, k, d, t: (b, at(t), k * along_d + d),
            ),
            "column": (
                (b, k, along_l, n, steps),
                (one, one, one, n, steps),
                lambda b, k, d, t: (b, k, at(t), 0, 0),
            ),
            "partial column": (
                (along_d, b, k, along_l, n, steps),
                (one, one, one, one, n, steps),
                lambda b, k, d, t: (d, b, k, at(t), 0, 0),
            ),
            "border": (
                (b, k, along_l, n, d),
                (one, one, one, n, lanes),
                lambda b, k, d, t: (b, k, at(t), 0, d),
            ),
            "A": ((k, n, d), (one, n, lanes), lambda b, k, d, t: (k, 0, d)),
            "D": ((k, 1, d), (one, 1, lanes), lambda b, k, d, t: (k, 0, d)),
            "dA": ((b, k, n, d), (one, one, n, lanes), lambda b, k, d, t: (b, k, 0, d)),
            "dD": ((b, k, 1, d), (one, one, 1, lanes), lambda b, k, d, t: (b, k, 0, d)),
        }
        return {name: (x[0], pl.BlockSpec(*x[1:])) for name, x in layouts.items()}

    def to_rows(self, *arrays):
        """(b, l, k, d) -> (b, l, k * d), padded: dt = 0 is the identity step."""
        return tuple(self._pad(x, l=1, d=3).reshape(self._layouts(False)["row"][0]) for x in arrays)

    def from_rows(self, x, like):
        b, l, k, d = like.shape
        return x.reshape(b, x.shape[1], k, -1)[:, :l, :, :d].astype(like.dtype)

    def to_columns(self, *arrays):
        """(b, l, k, n) -> (b, k, blocks of l, n, steps), padded."""
        shape = (self.b, self.blocks.along_l, self.blocks.steps, self.k, self.n)
        return tuple(self._pad(x, l=1).reshape(shape).transpose(0, 3, 1, 4, 2) for x in arrays)

    def from_columns(self, x, like):
        b, l, k, n = like.shape
        x = x.sum(0).transpose(0, 2, 4, 1, 3)
        return x.reshape(b, -1, k, n)[:, :l].astype(like.dtype)

    def to_tiles(self, A, D):
        """(k, d, n) and (k, d) -> (k, n, d) and (k, 1, d), padded."""
        return self._pad(A.swapaxes(1, 2), d=2), self._pad(D[:, None], d=2)

    def _pad(self, x, *, l=None, d=None):
        """Casts to float32 and pads the axes that hold l and d to whole blocks with zeros."""
        padding = [(0, 0)] * x.ndim
        if l is not None:
            padding[l] = (0, self.blocks.along_l * self.blocks.steps - x.shape[l])
        if d is not None:
            padding[d] = (0, self.blocks.along_d * self.blocks.lanes - x.shape[d])
        return jnp.pad(x.astype(jnp.float32), padding)


def _forward_kernel(u, dt, A, D, B, C, y, h):
    _zero_at_the_start(h)
    A, D, B, C = A[...], D[...], B[...], C[...]

    def step(t, h):
        row = pl.ds(t, 1)
        h = _advance(h, u[row], dt[row], A, _column(B, t))
        y[row] = (h * _column(C, t)).sum(0, keepdims=True) + D * u[row]
        return h

    h[...] = _loop(u.shape[0], step, h[...])


def _borders_kernel(u, dt, A, B, borders, h):
    _zero_at_the_start(h)
    borders[...] = h[...]
    A, B = A[...], B[...]

    def step(t, h):
        row = pl.ds(t, 1)
        return _advance(h, u[row], dt[row], A, _column(B, t))

    h[...] = _loop(u.shape[0], step, h[...])


def _backward_kernel(u, dt, dy, A, D, B, C, border, du, ddt, dA, dB, dC, dD, before, dh):
    """Runs one block: forward from its border to fill `before` with each h[t-1], then back."""
    steps = u.shape[0]
    _zero_at_the_start(dh, dA, dD)
    A, D, B, C = A[...], D[...], B[...], C[...]

    def forth(t, carry):
        h, dC = carry
        row = pl.ds(t, 1)
        before[t] = h
        h = _advance(h, u[row], dt[row], A, _column(B, t))
        return h, _with_column(dC, t, (h * dy[row]).sum(1, keepdims=True))

    _, dC[...] = _loop(steps, forth, (border[...], jnp.zeros_like(C)))

    def back(i, carry):
        dh, dA, dB = carry  # dh: the gradient that h[t] gets from the steps after t
        t = steps - 1 - i
        row = pl.ds(t, 1)
        u_t, dt_t, dy_t = u[row], dt[row], dy[row]
        a = jnp.exp(dt_t * A)
        dh = dh + dy_t * _column(C, t)
        d_dtu = (dh * _column(B, t)).sum(0, keepdims=True)
        d_log_a = dh * before[t] * a
        du[row] = d_dtu * dt_t + D * dy_t
        ddt[row] = d_dtu * u_t + (d_log_a * A).sum(0, keepdims=True)
        dB = _with_column(dB, t, (dh * (dt_t * u_t)).sum(1, keepdims=True))
        return a * dh, dA + d_log_a * dt_t, dB

    carry = (dh[...], jnp.zeros_like(A), jnp.zeros_like(B))
    dh[...], dA_block, dB[...] = _loop(steps, back, carry)
    # A block's sum first: adding each step to the sum over all of l would round more.
    dA[...] += dA_block
    dD[...] += (dy[...] * u[...]).sum(0, keepdims=True)


def _loop(steps, body, carry):
    """`lax.fori_loop(0, steps, body, carry)`, whose own index under x64 Mosaic cannot take."""

    def step(state, _):
        t, carry = state
        return (t + 1, body(t, carry)), None

    (_, carry), _ = lax.scan(step, (np.int32(0), carry), length=steps, unroll=_UNROLL)
    return carry


def _zero_at_the_start(*refs):
    """Zeroes what crosses from block to block of l before the first of them."""

    @pl.when(pl.program_id(_TIME) == 0)
    def _():
        for ref in refs:
            ref[...] = jnp.zeros_like(ref)


def _advance(h, u, dt, A, B):
    """Returns the next state, (n, lanes), of rows u and dt and the column B."""
    return jnp.exp(dt * A) * h + (dt * u) * B


def _column(x, t):
    """Returns x[:, t], (n, 1): Mosaic slices lanes at fixed places only, so mask and add."""
    return jnp.where(_lane(x) == t, x, 0.0).sum(1, keepdims=True)


def _with_column(x, t, column):
    """Returns x with `column` in place of x[:, t]."""
    return jnp.where(_lane(x) == t, column, x)


def _lane(x):
    return lax.broadcasted_iota(jnp.int32, x.shape, 1)


def _round_up(x, multiple):
    return math.ceil(x / multiple) * multiple
