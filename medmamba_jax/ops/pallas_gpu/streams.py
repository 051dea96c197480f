"""Bulk copies of a map's chunks between device memory and shared memory."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from medmamba_jax.ops.pallas_gpu.mosaic import Index, Ref, pl, plgpu
from medmamba_jax.ops.pallas_gpu.problem import Problem
from medmamba_jax.ops.pallas_gpu.walk import Walk

# Chunks in a buffer: one is in use while the next is copied. Three, four and six were slower or no
# faster on an H100, because fewer CTAs then fit on a multiprocessor.
SLOTS = 2


def at_pixels(ref: Ref, images: Any, *rest: Any) -> Callable[[Any, Any], Ref]:
    """Returns a function of (rows, columns) that points at that chunk of ref (b, h, w, *rest)."""
    return lambda rows, columns: ref.at[(images, rows, columns, *rest)]


def inputs(
    problem: Problem,
    images: Any,
    k: Index,
    channels: Any,
    *,
    maps: list[tuple[Ref, Ref]],
    packed: tuple[Ref, Ref],
    step: tuple[Ref, Ref | None],
) -> list:
    """Returns the arrays of a kernel's input with their buffers, for `Streams`.

    Args:
      images, k, channels: the images, the direction and the channels of the tile.
      maps: pairs of a reference to u or dy and its buffer.
      packed: the reference to the packed rows and its buffer.
      step: the reference to the step sizes and its buffer. They are copied only if the kernel does
        not project them.
    """
    own = (channels,) if problem.four_orders else (k, channels)
    arrays = [(at_pixels(ref, images, *own), buffer) for ref, buffer in maps]
    arrays.append((at_pixels(packed[0], images, k), packed[1]))
    if not problem.rank:
        arrays.append((at_pixels(step[0], images, k, channels), step[1]))
    return arrays


class Streams:
    """Copies arrays together, chunk by chunk; it copies the next chunk while one is in use.

    Args:
      walk, k: the walk and its direction.
      barriers: references to the barriers of all warpgroups, one for each slot.
      mine: the index of this warpgroup's first barrier.
      arrays: pairs of a place in device memory (`at_pixels`) and a buffer (SLOTS, ...).
      chunk_at: returns the chunk at position j of the walk.
      count: the number of chunks.
    """

    def __init__(
        self,
        walk: Walk,
        k: Index,
        barriers: Ref,
        arrays: list[tuple[Any, Any]],
        *,
        chunk_at: Callable[[Index], Index],
        count: Index,
        mine: Index = 0,
    ):
        self.walk, self.k, self.arrays = walk, k, arrays
        self.barrier_of = lambda slot: barriers.at[mine + slot]
        self.chunk_at, self.count = chunk_at, count

    def start(self) -> None:
        """Starts the copies of the first chunk."""
        self._fetch(0)

    def wait(self, j: Index) -> jax.Array:
        """Waits for the j-th chunk, starts the copies of the next, returns the slot of the j-th.

        All warps must be done with chunk j - 1, because the next chunk fills its slot.
        """
        slot = lax.rem(j, SLOTS)
        plgpu.barrier_wait(self.barrier_of(slot))
        self._fetch(j + 1)
        return slot

    def _fetch(self, j):
        @pl.when(j < self.count)
        def _():
            slot = lax.rem(j, SLOTS)

            def copy(rows, columns):
                for place, buffer in self.arrays:
                    target = buffer.at[slot]
                    plgpu.copy_gmem_to_smem(place(rows, columns), target, self.barrier_of(slot))

            self.walk.pixels(self.k, self.chunk_at(j), copy)


def send(walk: Walk, k: Index, c: Index, arrays: list[tuple[Any, Any]]) -> None:
    """Starts writing chunk c. `arrays` are pairs of a buffer and a place in device memory."""

    def copy(rows, columns):
        for buffer, place in arrays:
            plgpu.copy_smem_to_gmem(buffer, place(rows, columns))

    walk.pixels(k, c, copy)
