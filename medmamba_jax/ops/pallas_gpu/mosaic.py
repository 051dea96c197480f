"""Tiles in registers, and every private or experimental part of JAX that the GPU kernels use.

A tile is (4 images, 16 states, 32 channels). A warpgroup holds it in registers, one warp for each
image. `Device` spreads a tile over a warp's 32 lanes and sums across them. `Interpreter` does the
same in plain JAX, for Pallas's interpreter, which has no layouts.
"""

# The other files of this package import from here everything that is not JAX's stable API. If a
# later jax lacks or changes a part, importing this file or lowering a kernel raises an error, and
# `pallas_gpu._missing` turns that error into a refusal. The tests passed with jax 0.10.2 and
# 0.12.0.1, in the interpreter and by lowering for CUDA without a device. On a GPU they passed with
# jax 0.11.2.
#
# Experimental, and why each is needed:
#   pallas, pallas.mosaic_gpu: the language that the kernels are written in.
#   custom_partitioning: only this lets XLA split a kernel by image. `jax.shard_map` needs the mesh,
#     which a scan inside a model does not have.
#   extend.core.Primitive, interpreters.mlir: an operation whose kernel is lowered when the program
#     around it is lowered, and not when that program is traced, see lowered.py.
# Private, and why each is needed:
#   fragmented_array: `FragmentedArray` is a tile in registers. Code inside `inline_mgpu` calls its
#     `load_untiled`, `store_untiled` and `broadcast_in_dim` and reads and sets its registers
#     (`_registers`), because Pallas can neither choose the layout of a load nor exchange values
#     between lanes.
#   utils: the shuffle between lanes, constants and MLIR types.
#   jaxlib.mlir.dialects: the arithmetic on single registers between the shuffles.
#   InterpretGPUParams: jax 0.10.2 has no public name for it; jax 0.12.0.1 has one in `plgpu`.

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxlib.mlir.dialects import arith, nvvm, vector

from medmamba_jax.ops.pallas_gpu.problem import CHANNELS, IMAGES, STATES

__all__ = [
    "BY_BOTH",
    "Index",
    "Primitive",
    "Ref",
    "TileOps",
    "by_channel",
    "custom_partitioning",
    "interpreter",
    "kernel",
    "mlir",
    "pl",
    "plgpu",
]

# Types for which Pallas has no public name.
Ref = Any  # a reference to device or shared memory
Layout = Any  # how an array lies in the registers of a warpgroup's lanes
Index = int | jax.Array  # a number, traced or not

TILE = (IMAGES, STATES, CHANNELS)


def interpreter() -> Any:
    """Returns the parameters that make `plgpu.kernel` run in the interpreter."""
    params = getattr(plgpu, "InterpretGPUParams", None)
    if params is None:
        # Only the interpreter needs this private module, so a GPU does not import it.
        from jax._src.pallas.mosaic_gpu.interpret import params as module

        params = module.InterpretGPUParams
    return params()


def kernel(
    body: Callable[..., None],
    *,
    out_type: Sequence[jax.ShapeDtypeStruct],
    scratch_types: Mapping[str, Any],
    interpret: bool,
    **mesh: Any,
) -> Callable[..., Sequence[jax.Array]]:
    """Builds a `plgpu.kernel` under Warpgroup semantics, with the settings that all kernels share.

    Automatic barriers are off. A warp reads only what it wrote itself or what a copy wrote, and
    `warp_barrier`, `barrier_wait` or `commit_smem` stands between the write and the read.
    approx_math turns exp2 and exp into the hardware's ex2, whose error is 2 units in the last place
    and which makes subnormal decays 0.

    Args:
      body: the kernel, a function of references to its arguments, results and scratch memory.
      out_type: the results' shapes and dtypes.
      scratch_types: by name, the shared memory and the barriers.
      interpret: whether the kernel runs in Pallas's interpreter, on any backend.
      mesh: the grid and the threads, as `plgpu.kernel` takes them.
    """
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch_types,
        interpret=interpreter() if interpret else None,
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
            approx_math=True,
            reduction_scratch_bytes=0,
            unsafe_no_auto_barriers=True,
        ),
        **mesh,
    )


def _layout(tiles, warps, lanes):
    """Returns a register layout. `tiles` nest; the last tile's elements are one lane's vector.

    `warps` and `lanes` are the axes, counted from the end of the tiled shape, that the four warps
    and the 32 lanes of each divide among them.
    """
    return plgpu.Layout.TILED(plgpu.Tiling(tiles), warps, lanes, -1)


def by_channel(rows: int = STATES) -> Layout:
    """Returns the layout in which a lane has one channel and all rows of a (4, rows, 32) tile."""
    return _layout(((IMAGES, rows, CHANNELS), (rows, 1)), (-5,), (-3,))


# 4 x 8 lanes, each with 4 states x 4 channels. A sum over channels crosses 8 lanes, over states 4.
BY_BOTH = _layout((TILE, (4, 4)), (-5,), (-4, -3))
# Where those sums land: the sum of state s in the lanes with s = 4 * (lane // 8) + (lane % 8) // 2,
# the sum of channel c in the lane with c = 4 * (lane % 8) + lane // 8.
_STATE_SUMS = _layout(((IMAGES, STATES), (4,), (1,)), (-4,), (-3, -2, plgpu.Replicated(2)))
_CHANNEL_SUMS = _layout(((IMAGES, CHANNELS), (4,), (1,)), (-4,), (-2, -3))


class Device:
    """Tile operations as the GPU runs them."""

    @staticmethod
    def load(ref: Ref, layout: Layout) -> jax.Array:
        """Reads a whole reference in shared or device memory into registers with this layout."""
        return _load(ref.shape, jnp.dtype(ref.dtype), layout)(ref)

    @staticmethod
    def store(x: jax.Array, ref: Ref, layout: Layout) -> None:
        """Writes registers with this layout to a whole reference in shared or device memory."""
        _store(layout)(x, ref)

    @staticmethod
    def zeros(shape: tuple[int, ...], layout: Layout) -> jax.Array:
        return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)

    @staticmethod
    def spread(
        x: jax.Array, shape: tuple[int, ...], axes: tuple[int, ...], layout: Layout
    ) -> jax.Array:
        """Broadcasts x, whose axes are the axes `axes` of the tile, to the tile."""
        return _spread(shape, axes, layout)(x)

    @staticmethod
    def vectors(x: jax.Array, shape: tuple[int, ...], layout: Layout) -> jax.Array:
        """Broadcasts (32,) to (4, 32)."""
        return plgpu.layout_cast(lax.broadcast_in_dim(x, shape, (1,)), layout.reduce(1))

    @staticmethod
    def dot_rows(x: jax.Array, y: jax.Array, layout: Layout) -> jax.Array:
        """Sums x * y over axis 1, all of which is in one lane: (4, rows, 32) -> (4, 32)."""
        # Two chains of multiply-adds would need 7 of 113 instructions fewer. But their instructions
        # wait for each other and take registers: they were 5 to 17 % slower on an H100.
        return plgpu.layout_cast(jnp.sum(x * y, axis=1), layout.reduce(1))

    @staticmethod
    def warp_barrier() -> None:
        """__syncwarp: orders shared-memory traffic between a warp's lanes."""
        _warp_barrier()

    @staticmethod
    def sum_over_channels(x: jax.Array) -> jax.Array:
        """(4, 16, 32) in BY_BOTH -> (4, 16)."""
        return _sum_over_channels(x)

    @staticmethod
    def sum_over_states(x: jax.Array) -> jax.Array:
        """(4, 16, 32) in BY_BOTH -> (4, 32)."""
        return _sum_over_states(x)


class Interpreter:
    """The same operations without layouts."""

    @staticmethod
    def load(ref: Ref, layout: Layout) -> jax.Array:
        return ref[...]

    @staticmethod
    def store(x: jax.Array, ref: Ref, layout: Layout) -> None:
        ref[...] = x

    @staticmethod
    def zeros(shape: tuple[int, ...], layout: Layout) -> jax.Array:
        return jnp.zeros(shape, jnp.float32)

    @staticmethod
    def spread(
        x: jax.Array, shape: tuple[int, ...], axes: tuple[int, ...], layout: Layout
    ) -> jax.Array:
        return lax.broadcast_in_dim(x, shape, axes)

    @staticmethod
    def vectors(x: jax.Array, shape: tuple[int, ...], layout: Layout) -> jax.Array:
        return lax.broadcast_in_dim(x, shape, (1,))

    @staticmethod
    def dot_rows(x: jax.Array, y: jax.Array, layout: Layout) -> jax.Array:
        return jnp.sum(x * y, axis=1)

    @staticmethod
    def warp_barrier() -> None:
        pass

    @staticmethod
    def sum_over_channels(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=2)

    @staticmethod
    def sum_over_states(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=1)


class TileOps:
    """Broadcasts and loads of a tile in one layout, on top of `Device` or `Interpreter`."""

    def __init__(self, interpret: bool, layout: Layout, rows: int = STATES):
        self.base = Interpreter if interpret else Device
        self.layout = layout
        self.shape = (IMAGES, rows, CHANNELS)

    def load(self, ref: Ref, *missing: int) -> jax.Array:
        """Loads a tile without its axes `missing` (of images 0, states 1, channels 2)."""
        layout = self.layout.reduce(missing) if missing else self.layout
        return self.base.load(ref, layout)

    def store(self, x: jax.Array, ref: Ref) -> None:
        """Writes a tile."""
        self.base.store(x, ref, self.layout)

    def spread(self, x: jax.Array, missing: int) -> jax.Array:
        """Broadcasts x, a tile without one axis, to the tile."""
        kept = tuple(axis for axis in range(3) if axis != missing)
        return self.base.spread(x, self.shape, kept, self.layout)

    def vectors(self, x: jax.Array) -> jax.Array:
        """Broadcasts one channel vector (32,) to all images: (4, 32)."""
        return self.base.vectors(x, (IMAGES, CHANNELS), self.layout)

    def dot_rows(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Sums the product of two tiles over rows: (4, 32). Each lane must have all rows."""
        return self.base.dot_rows(x, y, self.layout)

    def zeros(self, *missing: int) -> jax.Array:
        shape = tuple(size for axis, size in enumerate(self.shape) if axis not in missing)
        layout = self.layout.reduce(missing) if missing else self.layout
        return self.base.zeros(shape, layout)


@functools.cache
def _load(shape, dtype, layout):
    """Loads an array. Like `_spread`, it is inlined to avoid the inference of layouts."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(),),
        return_type=plgpu.ShapeDtypeStruct(shape, dtype, layout=layout),
    )
    def load(ctx, ref):
        return fa.FragmentedArray.load_untiled(ref, layout=layout.to_mgpu(), optimized=False)

    return load


@functools.cache
def _store(layout):
    """Stores an array. It is inlined because jax 0.12 refuses to store 2 bytes from each lane."""

    @plgpu.inline_mgpu(arg_types=(layout, plgpu.RefType()))
    def store(ctx, x, ref):
        x.store_untiled(ref, optimized=False)

    return store


@functools.cache
def _spread(shape, axes, layout):
    """Broadcasts. It is inlined with given layouts, because inferring them takes seconds."""
    (missing,) = set(range(len(shape))) - set(axes)

    @plgpu.inline_mgpu(
        arg_types=(layout.reduce(missing),),
        return_type=plgpu.ShapeDtypeStruct(shape, jnp.float32, layout=layout),
    )
    def spread(ctx, x):
        return x.broadcast_in_dim(shape, axes, layout.to_mgpu())

    return spread


def _element(register, i):
    at = utils.ir.DenseI64ArrayAttr.get([i])
    return vector.extract(register, dynamic_position=[], static_position=at)


@plgpu.inline_mgpu()
def _warp_barrier(ctx):
    nvvm.bar_warp_sync(utils.c(0xFFFFFFFF, utils.ir.IntegerType.get_signless(32)))


def _registers(x):
    """Returns the 4 x 4 values of a lane, [state][channel]."""
    if x.registers.size != 4:  # another jax may lay out a tile differently
        raise NotImplementedError(f"expected 4 registers of 4 values, got {x.registers.shape}")
    return [[_element(register, j) for j in range(4)] for register in x.registers.flat]


def _chain(values):
    """Adds from left to right, with the flag that lets products fuse into the additions."""
    contract = arith.FastMathFlags.contract
    return functools.reduce(lambda x, y: arith.addf(x, y, fastmath=contract), values)


def _butterfly(values, halving, whole=()):
    """Sums each of `values` over lanes, and spreads the sums over the lanes.

    For each bit of `halving`, a lane exchanges one half of its values for the other half of the
    lane that differs in that bit. So 4 values need 2 + 1 shuffles, and not 8 for four full sums.
    For each bit of `whole`, lanes add their values without spreading them.
    """
    i32 = utils.ir.IntegerType.get_signless(32)
    lane = utils.thread_idx()
    for bit in halving:
        mine = arith.andi(lane, utils.c(bit, i32))
        upper = arith.cmpi(arith.CmpIPredicate.ne, mine, utils.c(0, i32))
        half = len(values) // 2
        values = [
            arith.addf(
                arith.select(upper, high, low),
                utils.shfl_bfly(arith.select(upper, low, high), bit),
            )
            for low, high in zip(values[:half], values[half:], strict=True)
        ]
    for bit in whole:
        values = [arith.addf(value, utils.shfl_bfly(value, bit)) for value in values]
    (value,) = values
    return value


def _as_array(value, shape, layout):
    layout = layout.to_mgpu()
    value = vector.broadcast(layout.registers_element_type(value.type), value)
    registers = np.array([value], dtype=object).reshape(layout.registers_shape(shape))
    return fa.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)


@plgpu.inline_mgpu(
    arg_types=(BY_BOTH,),
    return_type=plgpu.ShapeDtypeStruct((IMAGES, STATES), jnp.float32, layout=_STATE_SUMS),
)
def _sum_over_channels(ctx, x):
    sums = [_chain(row) for row in _registers(x)]
    return _as_array(_butterfly(sums, (4, 2), (1,)), (IMAGES, STATES), _STATE_SUMS)


@plgpu.inline_mgpu(
    arg_types=(BY_BOTH,),
    return_type=plgpu.ShapeDtypeStruct((IMAGES, CHANNELS), jnp.float32, layout=_CHANNEL_SUMS),
)
def _sum_over_states(ctx, x):
    sums = [_chain(column) for column in zip(*_registers(x), strict=True)]
    return _as_array(_butterfly(sums, (16, 8)), (IMAGES, CHANNELS), _CHANNEL_SUMS)
