"""What a kernel is built for: the static shape of a scan, and how the kernels cut it up."""

import dataclasses
import math

import numpy as np

IMAGES, STATES, CHANNELS = 4, 16, 32  # a tile; images are a warpgroup's warps, channels its lanes

SHARED_MEMORY = 232_448  # bytes a CTA may have on Hopper
MULTIPROCESSORS = 132  # of an H100 SXM and an H200
# The low-rank step size is projected in the kernel up to this rank; above it the product is cheaper
# on the tensor cores, as one XLA matrix product whose result the kernel reads (docs/kernels.md).
LARGEST_PROJECTED_RANK = 8


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """How the kernels cut a scan up.

    Attributes:
      chunk: steps of a line (a row or column) that the backward kernel holds in shared memory at a
        time; a boundary state is kept for each chunk.
      forward_chunks: how many of them make a chunk of the forward kernel.
      warpgroups: of the backward kernel's CTA, each with a tile of its own. Three of them also
        keep the register allocator at 168 registers, which nothing else does.
      segments: parts of every sequence that run at the same time. More than one costs a pass
        that finds each part's last state first, and fills a GPU that few sequences leave empty.
    """

    chunk: int
    forward_chunks: int
    warpgroups: int
    segments: int

    @property
    def forward_chunk(self) -> int:
        return self.chunk * self.forward_chunks


@dataclasses.dataclass(frozen=True)
class Problem:
    """The static shape of one call, padded so that tiles and chunks divide it.

    Attributes:
      b: images or sequences, a multiple of 4.
      h, w: sides of the map; a bare scan has h = 1 and w = l.
      k: directions. d: channels, a multiple of 32.
      four_orders: whether u is one image that all k = 4 directions share, walked along rows,
        columns, rows reversed and columns reversed; otherwise each direction has its own u and is
        walked along w.
      rank: padded rank of the step size's projection done in the kernel; 0 if step sizes are read.
      softplus: whether the step size goes through softplus (its bias is added in any case).
      dtype: of u, y, dy and du.
      step_dtype: of the step sizes read, and of the gradient written for them.
      config: how it is cut up.
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
    def packed(self) -> int:
        """Width of a pixel's packed row: B, C, then the low-rank step size, padded with zeros.

        Mosaic wants chunk * width to be a multiple of 16.
        """
        if not self.rank:
            return 2 * STATES
        return 2 * STATES + max(self.rank, 8 if self.config.chunk % 2 == 0 else 16)

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
        """Boundary states of one sequence: the longest direction's backward chunks."""
        h, w = self.padded
        steps = max(self.h * w, self.w * h) if self.four_orders else w
        return steps // self.config.chunk


def choose_config(b: int, h: int, w: int, k: int, d: int, *, rank: int, four_orders: bool, dtype):
    """Returns the measured default for a shape (docs/kernels.md has the measurements)."""
    chunk, forward_chunks = _choose_chunks(h, w, four_orders)
    warpgroups = 3
    while backward_bytes(chunk, rank, np.dtype(dtype)) * warpgroups + 1024 > SHARED_MEMORY:
        warpgroups -= 1
    # A forward CTA is one warpgroup; 3 of them on a multiprocessor keep it busy.
    ctas = math.ceil(b / IMAGES) * k * (d // CHANNELS)
    length = h * w
    segments = 1
    while ctas * segments < 1.5 * MULTIPROCESSORS and length // (2 * segments) >= 256:
        segments *= 2
    return KernelConfig(chunk, forward_chunks, warpgroups, segments)


def _choose_chunks(h: int, w: int, four_orders: bool) -> tuple[int, int]:
    """The chunk with the least padding; long forward chunks where they cost none."""

    def padded_steps(chunk):
        steps = math.ceil(w / chunk) * chunk * h
        return steps + math.ceil(h / chunk) * chunk * w if four_orders else steps

    # Weights: what a step costs relative to the best, mostly a chunk's fixed costs.
    candidates = {(7, 2): 1.0, (8, 2): 1.0, (7, 1): 1.08, (8, 1): 1.08, (6, 1): 1.2, (4, 1): 1.4}
    return min(candidates, key=lambda c: padded_steps(c[0] * c[1]) * candidates[c])


def backward_bytes(chunk: int, rank: int, dtype: np.dtype) -> int:
    """Shared memory of one warpgroup of the backward kernel."""
    vector = IMAGES * chunk * CHANNELS
    packed = 2 * STATES + (max(rank, 8 if chunk % 2 == 0 else 16) if rank else 0)
    streams = 2 * (2 * vector * dtype.itemsize + 4 * IMAGES * chunk * packed)
    if not rank:
        streams += 2 * 4 * vector
    stash = 4 * math.ceil(chunk / 2) * IMAGES * STATES * CHANNELS
    narrow = 2 * vector * dtype.itemsize if dtype.itemsize < 4 else 0
    return streams + stash + narrow + 4 * (3 * vector + IMAGES * chunk * 2 * STATES)
