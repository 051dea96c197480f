"""The parts of Mosaic GPU that the kernels need and that are private, or move between releases.

Seen working with jax 0.10.2, 0.11.2 and 0.12.0: 0.11.2 on a GPU, the others in the interpreter and
by lowering for CUDA without a device. Private to jax here: `fragmented_array` (register layouts),
`utils` (shuffles) and the interpreter's parameters. What is missing raises when this file is
imported or a kernel lowered, and `medmamba_jax.ops.pallas_gpu` turns that into a refusal.

A tile is (4 images, 16 states, 32 channels); a warpgroup holds it in registers, one warp an image.
`Device` lays a tile out over a warp's 32 lanes and sums across them; `Interpreter` is the same in
plain JAX, for the interpreter, which knows no layouts.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir.dialects import arith, nvvm, vector

from medmamba_jax.ops.pallas_gpu.problem import CHANNELS, IMAGES, STATES

TILE = (IMAGES, STATES, CHANNELS)


def kernel(body, *, out_type, scratch_types, interpret: bool, **mesh):
    """`plgpu.kernel` under Warpgroup semantics, with the settings that all kernels here share.

    Automatic barriers are off: a warp reads only what it or a copy wrote, and says so by
    `warp_barrier`, `barrier_wait` or `commit_smem`. approx_math turns exp2 and exp into the
    hardware's ex2, 2 units in the last place; subnormal decays become 0.
    """
    params = None
    if interpret:  # imported here: should it move, only tests are without it
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        params = InterpretGPUParams()
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch_types,
        interpret=params,
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
            approx_math=True,
            reduction_scratch_bytes=0,
            unsafe_no_auto_barriers=True,
        ),
        **mesh,
    )


def _layout(tiles, warps, lanes):
    """A register layout; `tiles` nest, the last tile's elements are one lane's vector."""
    layout = fa.TiledLayout(fa.Tiling(tiles), warps, lanes, -1, _check_canonical=False)
    layout = layout.canonicalize()
    return plgpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)


def by_channel(rows: int = STATES):
    """A lane has one channel and all `rows` of a (4, rows, 32) tile."""
    return _layout(((IMAGES, rows, CHANNELS), (1, rows, 1)), (-6,), (-4,))


# 4 x 8 lanes, each with 4 states x 4 channels: sums over channels cross 8 lanes, over states 4.
BY_BOTH = _layout((TILE, (1, 4, 4)), (-6,), (-5, -4))
# Where those sums land: in the lane of state 4 * (lane // 8) + (lane % 8) // 2, and in that of
# channel 4 * (lane % 8) + lane // 8.
_STATE_SUMS = _layout(((IMAGES, STATES), (1, 4), (1, 1)), (-6,), (-5, -3, fa.Replicated(2)))
_CHANNEL_SUMS = _layout(((IMAGES, CHANNELS), (1, 4), (1, 1)), (-6,), (-3, -5))


class Device:
    """Tile operations as the GPU runs them."""

    @staticmethod
    def load(ref, layout):
        """Reads a whole reference, in shared or device memory, into registers laid out so."""
        return _load(ref.shape, jnp.dtype(ref.dtype), layout)(ref)

    @staticmethod
    def zeros(shape, layout):
        return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)

    @staticmethod
    def spread(x, shape, axes, layout):
        """Broadcasts x, whose axes are those of the tile's, to a tile."""
        return _spread(shape, axes, layout)(x)

    @staticmethod
    def vectors(x, shape, layout):
        """Broadcasts (32,) to (4, 32)."""
        return plgpu.layout_cast(lax.broadcast_in_dim(x, shape, (1,)), layout.reduce(1))

    @staticmethod
    def dot_rows(x, y, layout):
        """Sums x * y over axis 1, which each lane has whole: (4, rows, 32) -> (4, 32)."""
        # Not as two chains of multiply-adds, which are 7 instructions fewer of 113 but wait for
        # each other and take registers: 5 to 17 % slower on an H100.
        return plgpu.layout_cast(jnp.sum(x * y, axis=1), layout.reduce(1))

    @staticmethod
    def warp_barrier():
        """__syncwarp: orders shared-memory traffic between a warp's lanes."""
        _warp_barrier()

    @staticmethod
    def sum_over_channels(x):
        """(4, 16, 32) in BY_BOTH -> (4, 16)."""
        return _sum_over_channels(x)

    @staticmethod
    def sum_over_states(x):
        """(4, 16, 32) in BY_BOTH -> (4, 32)."""
        return _sum_over_states(x)


class Interpreter:
    """The same operations without layouts."""

    @staticmethod
    def load(ref, layout):
        return ref[...]

    @staticmethod
    def zeros(shape, layout):
        return jnp.zeros(shape, jnp.float32)

    @staticmethod
    def spread(x, shape, axes, layout):
        return lax.broadcast_in_dim(x, shape, axes)

    @staticmethod
    def vectors(x, shape, layout):
        return lax.broadcast_in_dim(x, shape, (1,))

    @staticmethod
    def dot_rows(x, y, layout):
        return jnp.sum(x * y, axis=1)

    @staticmethod
    def warp_barrier():
        pass

    @staticmethod
    def sum_over_channels(x):
        return jnp.sum(x, axis=2)

    @staticmethod
    def sum_over_states(x):
        return jnp.sum(x, axis=1)


class TileOps:
    """Broadcasts and loads of a tile in one layout, on top of `Device` or `Interpreter`."""

    def __init__(self, interpret: bool, layout, rows: int = STATES):
        self.base = Interpreter if interpret else Device
        self.layout = layout
        self.shape = (IMAGES, rows, CHANNELS)

    def load(self, ref, *missing):
        """Loads a tile without its axes `missing` (of images 0, states 1, channels 2)."""
        layout = self.layout.reduce(missing) if missing else self.layout
        return self.base.load(ref, layout)

    def spread(self, x, missing: int):
        """Broadcasts x, a tile without one axis, to the tile."""
        kept = tuple(axis for axis in range(3) if axis != missing)
        return self.base.spread(x, self.shape, kept, self.layout)

    def vectors(self, x):
        """Broadcasts one channel vector (32,) to all images: (4, 32)."""
        return self.base.vectors(x, (IMAGES, CHANNELS), self.layout)

    def dot_rows(self, x, y):
        """Sums the product of two tiles that have all rows in each lane over them: (4, 32)."""
        return self.base.dot_rows(x, y, self.layout)

    def zeros(self, *missing):
        shape = tuple(size for axis, size in enumerate(self.shape) if axis not in missing)
        layout = self.layout.reduce(missing) if missing else self.layout
        return self.base.zeros(shape, layout)


@functools.cache
def _load(shape, dtype, layout):
    """As `_spread`, inlined to be spared the inference of layouts."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(),),
        return_type=plgpu.ShapeDtypeStruct(shape, dtype, layout=layout),
    )
    def load(ctx, ref):
        return fa.FragmentedArray.load_untiled(ref, layout=layout.to_mgpu(), optimized=False)

    return load


@functools.cache
def _spread(shape, axes, layout):
    """Inlined since its layouts are then given: inferring those of a broadcast takes seconds."""
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
    """A lane's 4 x 4 values, [state][channel]."""
    if x.registers.size != 4:
        raise ValueError(f"expected 4 registers of 4 values, got {x.registers.shape}")
    return [[_element(register, j) for j in range(4)] for register in x.registers.flat]


def _chain(values):
    """Adds left to right with the flag that lets products fuse into the additions."""
    contract = arith.FastMathFlags.contract
    return functools.reduce(lambda x, y: arith.addf(x, y, fastmath=contract), values)


def _butterfly(values, halving, whole=()):
    """Sums each of `values` over lanes, spreading the sums over the lanes.

    Every bit of `halving` exchanges one half of the values for the other with the lane that
    differs in that bit: 4 values cost 2 + 1 shuffles, not the 8 of a full sum each. `whole` bits
    add without spreading.
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
