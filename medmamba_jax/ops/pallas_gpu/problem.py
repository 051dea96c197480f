"""The static shape of a scan that a kernel is built for, and how the kernels cut it up."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

# The axes of a tile. Each of a warpgroup's four warps has an image. Its 32 lanes share the rest.
IMAGES, STATES, CHANNELS = 4, 16, 32

SHORTEST_LINE = 4  # steps; fixed costs would dominate a shorter chunk
SHARED_MEMORY = 232_448  # bytes that a CTA may have on Hopper
MULTIPROCESSORS = 132  # of an H100 SXM and an H200
SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 22, 32)
# The kernel projects the low-rank step size up to this rank. Above it, one XLA matrix product on
# the tensor cores is cheaper; the kernel then reads its result (docs/kernels.md).
LARGEST_PROJECTED_RANK = 12


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How lines are cut. The shapes of the arrays that the kernels exchange depend on it.

    Attributes:
      chunk: steps of a line (a row or column) that the backward kernel holds in shared memory at a
        time. The forward pass keeps a boundary state for each chunk.
      forward_chunks: how many of these chunks make a chunk of the forward kernel.
    """

    chunk: int
    forward_chunks: int

    @property
    def forward_chunk(self) -> int:
        """Steps in a chunk of the forward kernel."""
        return self.chunk * self.forward_chunks


@dataclasses.dataclass(frozen=True)
class KernelConfig(Chunks):
    """How the kernels cut up the images of one device.

    Attributes:
      warpgroups: number of warpgroups in the backward kernel's CTA, each with its own tile. Only
        three of them keep the register allocator at 168 registers.
      forward_segments, backward_segments: number of parts of every sequence that run at the same
        time. Several parts fill a GPU for which there are too few sequences. They need an extra
        pass, which finds the state that each part passes to the next.
    """

    warpgroups: int
    forward_segments: int
    backward_segments: int


@dataclasses.dataclass(frozen=True)
class Problem:
    """The static shape of one call, padded so that tiles and chunks divide it.

    Attributes:
      b: images or sequences, a multiple of 4.
      h, w: the sides of the map. A bare scan has h = 1 and w = l.
      k: directions.
      d: channels, a multiple of 32.
      four_orders: whether u is one image that all k = 4 directions share. They walk it along rows,
        columns, rows reversed and columns reversed. Otherwise each direction has its own u and
        walks it along w.
      rank: the padded rank of the step size's projection in the kernel, or 0 where the kernel reads
        step sizes.
      softplus: whether the step size goes through softplus. Its bias is added in any case.
      dtype: the dtype of u, y, dy and du.
      step_dtype: the dtype of the step sizes that the kernel reads.
      config: how the kernels cut the problem up.
    """

    b: int
    h: int
    w: int
    k: int
    d: int
    four_orders: bool
    rank: int
    softplus: bool
    dtype: np.dtype
    step_dtype: np.dtype
    config: KernelConfig

    @property
    def dstep_dtype(self) -> np.dtype:
        """The dtype of the step sizes' gradient: theirs if the kernel reads them, else u's."""
        return self.dtype if self.rank else self.step_dtype

    @property
    def packed(self) -> int:
        """Width of a pixel's packed row, see `packed_width`."""
        return packed_width(self.rank, self.config.chunk)

    @property
    def B(self) -> slice:
        """The place of B in a pixel's packed row."""
        return slice(self.rank, self.rank + STATES)

    @property
    def C(self) -> slice:
        """The place of C in a pixel's packed row."""
        return slice(self.rank + STATES, self.rank + 2 * STATES)

    @property
    def padded(self) -> tuple[int, int]:
        """The map's sides (h, w) in memory: whole forward chunks along each line."""
        chunk = self.config.forward_chunk
        w = math.ceil(self.w / chunk) * chunk
        return (math.ceil(self.h / chunk) * chunk if self.four_orders else self.h), w

    @property
    def tiles(self) -> int:
        """Tiles of channels."""
        return self.d // CHANNELS

    @property
    def boundaries(self) -> int:
        """The number of boundary states of a sequence: backward chunks of the longest direction."""
        h, w = self.padded
        steps = max(self.h * w, self.w * h) if self.four_orders else w
        return steps // self.config.chunk


def packed_width(rank: int, chunk: int) -> int:
    """Returns the width of a pixel's packed row: the low-rank step size, B, C, then zeros.

    The order is that of the model's projection, so that nothing has to be copied where nothing has
    to be padded. Mosaic needs chunk * width to be a multiple of 16.
    """
    width = rank + 2 * STATES
    while chunk * width % 16:
        width += 4
    return width


def choose_chunks(h: int, w: int, *, four_orders: bool) -> Chunks:
    """Returns the chunks with the least padding; long forward chunks where they cost no padding.

    The chunks depend only on the map, not on the batch or the dtype. A call chooses them once,
    before XLA divides the batch, and all kernels of the call use them. So packed rows and boundary
    states have the same form on every device and in both passes.
    """

    def padded_steps(chunk):
        steps = math.ceil(w / chunk) * chunk * h
        return steps + math.ceil(h / chunk) * chunk * w if four_orders else steps

    # The cost of a step relative to the best chunks. Short chunks pay fixed costs more often.
    weights = {(8, 1): 1.0, (7, 2): 1.02, (7, 1): 1.04, (6, 1): 1.2, (4, 1): 1.4}
    return Chunks(*min(weights, key=lambda c: padded_steps(c[0] * c[1]) * weights[c]))


def choose_config(
    chunks: Chunks, b: int, h: int, w: int, k: int, d: int, *, rank: int, dtype: np.dtype
) -> KernelConfig:
    """Completes a call's chunks for the b images that one device has.

    A cost that is fitted to measured times determines the segments. docs/kernels.md has the
    measurements, which do not cover every shape. No array that outlives a pass depends on segments
    and warpgroups, so devices and passes may differ in them.
    """
    warpgroups = 3
    while backward_bytes(chunks.chunk, rank, np.dtype(dtype), warpgroups) > SHARED_MEMORY:
        warpgroups -= 1
    tiles = math.ceil(b / IMAGES) * (d // CHANNELS)
    length = h * w // chunks.forward_chunk  # in forward chunks
    return KernelConfig(
        chunks.chunk,
        chunks.forward_chunks,
        warpgroups,
        forward_segments=_fewest(
            length, lambda s: _forward_cost(tiles * k * s / MULTIPROCESSORS, s)
        ),
        backward_segments=_fewest(
            length, lambda s: _backward_cost(math.ceil(tiles / warpgroups) * k, s)
        ),
    )


def _fewest(chunks: int, cost: Callable[[int], float]) -> int:
    """Returns the cheapest number of segments of at least 8 chunks; if equal, the smallest."""
    return min((s for s in SEGMENTS if s == 1 or chunks >= 8 * s), key=cost)


def _forward_cost(ctas_per_multiprocessor: float, segments: int) -> float:
    """Returns the relative time of a forward pass, a fit to times measured at 0.7 to 4 CTAs."""
    passes = 1.0 if segments == 1 else 1.85
    return passes / (1.0 - math.exp(-min(ctas_per_multiprocessor, 4.0) / 1.6))


def _backward_cost(ctas: int, segments: int) -> float:
    """Returns the relative time of a backward pass: waves of one CTA for each multiprocessor."""
    waves = math.ceil(ctas * segments / MULTIPROCESSORS) / segments
    first_pass = 0.0 if segments == 1 else 0.33 * ctas / MULTIPROCESSORS
    return waves + first_pass


def backward_bytes(chunk: int, rank: int, dtype: np.dtype, warpgroups: int) -> int:
    """Returns the bytes of shared memory of the backward kernel; each array is padded to a KiB."""
    vector = IMAGES * chunk * CHANNELS
    arrays = [
        *2 * [2 * vector * dtype.itemsize],  # u, dy
        2 * 4 * IMAGES * chunk * packed_width(rank, chunk),
        0 if rank else 2 * 4 * vector,  # step sizes
        4 * math.ceil(chunk / 2) * IMAGES * STATES * CHANNELS,  # states
        3 * 4 * vector,
        IMAGES * chunk * 2 * STATES * dtype.itemsize,  # dB, dC
        2 * 4 * IMAGES * CHANNELS,
        *2 * [vector * dtype.itemsize if dtype.itemsize < 4 else 0],  # du, d_step
    ]
    barriers = 2 * 8 * warpgroups
    return barriers + sum(math.ceil(warpgroups * size / 1024) * 1024 for size in arrays)
