"""Chunks of a map on their way between device memory and shared memory, by bulk copies."""

from jax import lax

from medmamba_jax.ops.pallas_gpu.mosaic import pl, plgpu
from medmamba_jax.ops.pallas_gpu.walk import Walk

# Of a buffer. Three, four and six were slower or no faster on an H100: they cost residency.
SLOTS = 2


def at_pixels(ref, images, *rest):
    """A function of a chunk's (rows, columns) that points at them in ref (b, h, w, *rest)."""
    return lambda rows, columns: ref.at[(images, rows, columns, *rest)]


class Streams:
    """Arrays that arrive together, chunk by chunk, one chunk ahead of where they are used.

    Args:
      walk, k: the walk and its direction.
      barriers, mine: references to barriers, and the first of the slots' own among them.
      arrays: pairs of a place in device memory (`at_pixels`) and a buffer (SLOTS, ...).
      chunk_at: the chunk that is used j-th; `count` of them are.
    """

    def __init__(self, walk: Walk, k, barriers, arrays, *, chunk_at, count, mine=0):
        self.walk, self.k, self.arrays = walk, k, arrays
        self.barrier_of = lambda slot: barriers.at[mine + slot]
        self.chunk_at, self.count = chunk_at, count

    def start(self) -> None:
        """Asks for the first chunk."""
        self._fetch(0)

    def wait(self, j):
        """Waits for the j-th chunk, asks for the next, and returns the slot of the j-th.

        All warps must be done with chunk j - 1: its slot is the one that is filled.
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


def send(walk: Walk, k, c, arrays) -> None:
    """Starts writing chunk c; `arrays` are pairs of a buffer and a place in device memory."""

    def copy(rows, columns):
        for buffer, place in arrays:
            plgpu.copy_smem_to_gmem(buffer, place(rows, columns))

    walk.pixels(k, c, copy)
