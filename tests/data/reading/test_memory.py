"""Memory of batches: it is used again, never too early, and the heaps do not keep large blocks."""

import ctypes
import os
import pickle

import numpy as np
import psutil
import pytest

from medmamba_jax.data import DataConfig
from medmamba_jax.data.reading import loading
from medmamba_jax.data.reading.memory import Blocks, return_free_memory, return_large_blocks


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_the_array_and_its_views_are_gone():
    blocks = Blocks()
    first = blocks.empty((4, 8), np.float32)
    first[:] = 1
    place, row = address(first), first.T[::2]
    del first
    second = blocks.empty((2, 16), np.float32)
    second[:] = 2
    assert not np.shares_memory(row, second) and (row == 1).all()
    del row
    assert address(blocks.empty((32,), np.float32)) == place


def test_it_joins_as_numpy_does():
    blocks, rng = Blocks(), np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (n, 3), np.uint8) for n in (2, 2, 1)]
    np.testing.assert_array_equal(blocks.concatenate(arrays), np.concatenate(arrays))
    np.testing.assert_array_equal(blocks.stack(arrays[:2]), np.stack(arrays[:2]))
    numbers = [np.int32(3), np.int32(4)]
    np.testing.assert_array_equal(blocks.stack(numbers), numbers, strict=True)


def test_a_copy_for_another_process_shares_no_memory():
    blocks = Blocks()
    place = address(blocks.empty((8,), np.uint8))
    assert address(pickle.loads(pickle.dumps(blocks)).empty((8,), np.uint8)) != place


def test_reading_takes_no_more_memory_after_the_first_batches(images, monkeypatch):
    made = []
    monkeypatch.setattr(
        "medmamba_jax.data.reading.memory.bytearray",
        lambda size: made.append(size) or bytearray(size),
        raising=False,
    )
    preprocessing = DataConfig(image_size=32).preprocessing(1)
    arguments = (images.splits["train"], preprocessing, "none")
    with loading.train_batches(*arguments, batch_size=8, seed=0) as batches:
        for _ in range(400):
            next(batches)
    # 400 batches of one part take 800 arrays of pixels. Only so many are in use at once: what
    # threads, buffers and the loop hold.
    assert 2 <= made.count(8 * 32 * 32) <= 100


def test_large_blocks_do_not_come_from_the_heaps():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("the C library is not glibc")
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        pytest.skip("environment variables choose the settings of glibc's allocator")

    class Information(ctypes.Structure):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        _fields_ = tuple((name, ctypes.c_size_t) for name in names.split())

    libc.mallinfo2.restype = Information
    return_large_blocks()
    larger = np.empty(16 * 2**20, np.uint8)
    del larger  # By default, blocks of up to this size would come from the heaps from now on.
    before = libc.mallinfo2().hblkhd
    # A few of them may fill holes that earlier tests have left in the heaps.
    blocks = [np.empty(2 * 2**20, np.uint8) for _ in range(256)]
    assert libc.mallinfo2().hblkhd - before >= sum(block.nbytes for block in blocks) / 2


def test_free_memory_between_blocks_in_use_goes_back_to_the_system():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("the C library is not glibc")
    process = psutil.Process()
    blocks = [np.ones(100_000, np.uint8) for _ in range(1000)]
    del blocks[::2]
    before = process.memory_info().rss
    return_free_memory()
    assert before - process.memory_info().rss > 25_000_000
