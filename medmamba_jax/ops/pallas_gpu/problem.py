"""What a kernel is built for: the static shape of a scan, and how the kernels cut it up."""

import dataclasses
import math

import numpy as np

IMAGES, STATES, CHANNELS = 4, 16, 32  # a tile; images are a warpgroup's warps, channels its lanes

SHORTEST_LINE = 4  # steps; a chunk of fewer would be mostly fixed costs
SHARED_MEMORY = 232_448  # bytes a CTA may have on Hopper
MULTIPROCESSORS = 132  # of an H100 SXM and an H200
SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 22, 32)
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
      forward_segments, backward_segments: parts of every sequence that run at the same time. More
        than one costs a pass that finds first what each part hands to the next, and fills a GPU
        that few sequences leave empty.
    """

    chunk: int
    forward_chunks: int
    warpgroups: int
    forward_segments: int
    backward_segments: int

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
      step_dtype: of the step sizes read.
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
        """Width of a pixel's packed row, see `packed_width`."""
        return packed_width(self.rank, self.config.chunk)

    @property
    def B(self) -> slice:
        """Where B stands in a pixel's packed row."""
        return slice(self.rank, self.rank + STATES)

    @property
    def C(self) -> slice:
        """Where C stands in a pixel's packed row."""
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
        """Boundary states of one sequence: the longest direction's backward chunks."""
        h, w = self.padded
        steps = max(self.h * w, self.w * h) if self.four_orders else w
        return steps // self.config.chunk


def packed_width(rank: int, chunk: int) -> int:
    """Width of a pixel's packed row: the low-rank step size, B, C, then zeros.

    In the order of the model's projection, so that there is nothing to copy where nothing is
    padded. Mosaic wants chunk * width to be a multiple of 16.
    """
    width = rank + 2 * STATES
    while chunk * width % 16:
        width += 4
    return width


def choose_config(b: int, h: int, w: int, k: int, d: int, *, rank: int, four_orders: bool, dtype):
    """Returns the default for a shape: chunks as measured, segments by a cost fitted to times.

    docs/kernels.md has the measurements, which do not cover every shape. The chunks depend on the
    map alone, never on b: boundary states that a sharded or vmapped forward pass has kept fit any
    backward pass.
    """
    chunk, forward_chunks = _choose_chunks(h, w, four_orders)
    warpgroups = 3
    while backward_bytes(chunk, rank, np.dtype(dtype), warpgroups) > SHARED_MEMORY:
        warpgroups -= 1
    tiles = math.ceil(b / IMAGES) * (d // CHANNELS)
    chunks = h * w // (chunk * forward_chunks)
    return KernelConfig(
        chunk,
        forward_chunks,
        warpgroups,
        forward_segments=_fewest(
            chunks, lambda s: _forward_cost(tiles * k * s / MULTIPROCESSORS, s)
        ),
        backward_segments=_fewest(
            chunks, lambda s: _backward_cost(math.ceil(tiles / warpgroups) * k, s)
        ),
    )


def _choose_chunks(h: int, w: int, four_orders: bool) -> tuple[int, int]:
    """The chunk with the least padding; long forward chunks where they cost none."""

    def padded_steps(chunk):
        steps = math.ceil(w / chunk) * chunk * h
        return steps + math.ceil(h / chunk) * chunk * w if four_orders else steps

    # What a step costs relative to the best; a short chunk has its fixed costs more often.
    weights = {(8, 1): 1.0, (7, 2): 1.02, (7, 1): 1.04, (6, 1): 1.2, (4, 1): 1.4}
    return min(weights, key=lambda c: padded_steps(c[0] * c[1]) * weights[c])


def _fewest(chunks: int, cost) -> int:
    """The cheapest number of segments of at least 8 chunks, the smallest of equals."""
    return min((s for s in SEGMENTS if s == 1 or chunks >= 8 * s), key=cost)


def _forward_cost(ctas_per_multiprocessor: float, segments: int) -> float:
    """Relative time of a forward pass; the curve is a fit to times measured at 0.7 to 4 CTAs."""
    passes = 1.0 if segments == 1 else 1.85
    return passes / (1.0 - math.exp(-min(ctas_per_multiprocessor, 4.0) / 1.6))


def _backward_cost(ctas: int, segments: int) -> float:
    """Relative time of a backward pass: waves of one CTA a multiprocessor, and the first pass."""
    waves = math.ceil(ctas * segments / MULTIPROCESSORS) / segments
    return waves if segments == 1 else waves + 0.33 * ctas / MULTIPROCESSORS


def backward_bytes(chunk: int, rank: int, dtype: np.dtype, warpgroups: int) -> int:
    """Shared memory of the backward kernel, whose arrays are each padded to a KiB."""
    vector = IMAGES * chunk * CHANNELS
    arrays = [
        *2 * [2 * vector * dtype.itemsize],  # u, dy
        2 * 4 * IMAGES * chunk * packed_width(rank, chunk),
        0 if rank else 2 * 4 * vector,  # step sizes
        4 * math.ceil(chunk / 2) * IMAGES * STATES * CHANNELS,  # states
        3 * 4 * vector,
        4 * IMAGES * chunk * 2 * STATES,  # dB, dC
        2 * 4 * IMAGES * CHANNELS,
        vector * dtype.itemsize if dtype.itemsize < 4 else 0,  # du
    ]
    barriers = 2 * 8 * warpgroups
    return barriers + sum(math.ceil(warpgroups * size / 1024) * 1024 for size in arrays)
