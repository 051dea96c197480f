"""Keeps the memory of a process flat while it reads images for hours.

Every batch needs memory of many MiB, and frees it soon after. The allocator of glibc takes such
blocks from the heap of the thread that asks, between the smaller blocks of other work. The holes
that they leave are too small for the next batch, so the heaps grow with every epoch. `Blocks` and
`return_large_blocks` together prevent that. The second one alone would do so as well, but then the
system would have to give fresh pages to every batch, which halves the speed of reading from memory.
"""

import collections
import ctypes
import functools
import math
import os
import sys
import weakref
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import DTypeLike

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 2**20  # bytes


class Blocks:
    """Memory for arrays of few sizes, which is used again once an array and all its views are gone.

    Threads may share it. A copy in another process starts without any memory.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[bytearray]] = collections.defaultdict(list)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Returns an array of any content."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = bytearray(size)
        # The array is the base of its views, because its own base is no array.
        array = np.ndarray(shape, dtype, block)
        weakref.finalize(array, free.append, block).atexit = False
        return array

    def stack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Returns `np.stack(arrays)`."""
        shape = (len(arrays), *arrays[0].shape)
        return np.stack(arrays, out=self.empty(shape, arrays[0].dtype))

    def concatenate(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Returns `np.concatenate(arrays)`."""
        shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
        return np.concatenate(arrays, out=self.empty(shape, arrays[0].dtype))

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


@functools.cache
def return_large_blocks() -> None:
    """Lets glibc return each block of 1 MiB or more to the system as soon as it is freed.

    Without this, glibc does so from 128 KiB on at first, but raises this limit to the size of each
    block that is freed, up to 32 MiB. A limit that is set stays. Nothing happens where another
    library allocates, or where the user has chosen settings by glibc's environment variables.
    """
    if sys.platform != "linux" or any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ
    ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def return_free_memory() -> None:
    """Lets glibc return all free memory of its heaps to the system, also between blocks in use.

    Call it after the program has freed many small blocks. It does nothing if the C library is not
    glibc.
    """
    malloc_trim = (
        getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    )
    if malloc_trim is not None:
        malloc_trim(0)
