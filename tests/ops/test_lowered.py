import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export

from medmamba_jax.ops.pallas_gpu import lowered as module
from medmamba_jax.ops.pallas_gpu.lowered import lowered
from medmamba_jax.ops.pallas_gpu.problem import Problem, choose_chunks, choose_config
from medmamba_jax.ops.pallas_gpu.segments import make_segment_ends

SIDE, D = 4, 32


@pytest.fixture
def problem():
    dtype = jnp.dtype("float32")
    chunks = choose_chunks(SIDE, SIDE, four_orders=True)
    config = choose_config(chunks, 4, SIDE, SIDE, 4, D, rank=4, dtype=dtype)
    return Problem(4, SIDE, SIDE, 4, D, True, 4, True, dtype, dtype, config)


@pytest.fixture
def arguments(problem):
    maps = (4, SIDE, SIDE)
    shapes = [(*maps, D), (*maps, 4, problem.packed), (4, 4, D), (4, D), (4, 16, D)]
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


@pytest.fixture
def cache(tmp_path):
    pytest.importorskip("flatbuffers")
    module._exported.cache_clear()
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    module._exported.cache_clear()


class Make:
    """`make_segment_ends` that counts."""

    __name__ = "make_segment_ends"

    def __init__(self):
        self.built = 0

    def __call__(self, problem, **options):
        self.built += 1
        return make_segment_ends(problem, **options)


def for_cuda(function, arguments) -> str:
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def kernels(text: str) -> list[str]:
    return re.findall(r'kernel_hash = "[^"]*"', text)


def files(folder):
    return sorted(folder.glob("medmamba_jax_make_segment_ends-*"))


def test_a_process_lowers_once_and_the_next_one_not_at_all(problem, arguments, cache):
    make = Make()
    first = for_cuda(lowered(make, problem, adjoint=False), arguments)
    again = for_cuda(lowered(make, problem, adjoint=False), arguments)
    module._exported.cache_clear()  # as in a new process
    later = for_cuda(lowered(make, problem, adjoint=False), arguments)
    assert make.built == 1 and len(files(cache)) == 1
    assert len(kernels(first)) == 1 and kernels(first) == kernels(again) == kernels(later)


def test_other_options_and_other_source_are_other_files(problem, arguments, cache, monkeypatch):
    def lower(**options):
        return for_cuda(lowered(Make(), problem, **options), arguments)

    lower(adjoint=False)
    lower(adjoint=True)
    assert len(files(cache)) == 2
    monkeypatch.setattr(module, "_source", lambda: b"changed")
    module._exported.cache_clear()
    lower(adjoint=False)
    assert len(files(cache)) == 3


@pytest.mark.parametrize("content", [b"", "cut"])
def test_a_damaged_file_is_made_again(problem, arguments, cache, content):
    def lower(make) -> str:  # one line for both, because the hash of a kernel may depend on it
        return for_cuda(lowered(make, problem, adjoint=False), arguments)

    whole = lower(Make())
    (file,) = files(cache)
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2] if content == "cut" else content)
    module._exported.cache_clear()
    make = Make()
    again = lower(make)
    assert make.built == 1 and kernels(again) == kernels(whole)
    assert export.deserialize(bytearray(file.read_bytes())).out_avals


def test_a_file_that_cannot_be_written_leaves_nothing(problem, arguments, cache, monkeypatch):
    def no_room(*paths):
        raise OSError("no room")

    monkeypatch.setattr(os, "fsync", no_room)
    assert kernels(for_cuda(lowered(make_segment_ends, problem, adjoint=False), arguments))
    assert not list(cache.iterdir())


def test_without_a_cache_nothing_is_written(problem, arguments, cache):
    jax.config.update("jax_compilation_cache_dir", None)
    for_cuda(lowered(make_segment_ends, problem, adjoint=False), arguments)
    assert not files(cache)


def test_tracing_alone_lowers_nothing(problem, arguments, cache):
    results = jax.eval_shape(lowered(make_segment_ends, problem, adjoint=False), *arguments)
    assert not files(cache)
    expected = jax.eval_shape(
        make_segment_ends(problem, adjoint=False, interpret=False), *arguments
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), results) == jax.tree.map(
        lambda x: (x.shape, x.dtype), expected
    )
    for_cuda(lowered(make_segment_ends, problem, adjoint=False), arguments)
    assert len(files(cache)) == 1


def test_outside_of_jit_a_kernel_is_traced_and_compiled_once(problem, arguments, monkeypatch):
    """A CPU has no kernels, so this one returns its last argument. Its lowerings are counted."""
    kernel, lowerings = module.Primitive("kernel_for_a_cpu"), []
    kernel.multiple_results = True
    kernel.def_impl(module._kernel.impl)
    kernel.def_abstract_eval(lambda *arrays, **kept: [arrays[-1]])

    def lower(context, *operands, **kept):
        lowerings.append(kept)
        return operands[-1:]

    module.mlir.register_lowering(kernel, lower, platform="cpu")
    monkeypatch.setattr(module, "_kernel", kernel)
    arrays = [jnp.ones(x.shape, x.dtype) for x in arguments]
    make = Make()
    for adjoint in (False, False, True, False):
        (result,) = lowered(make, problem, adjoint=adjoint)(*arrays)
        assert (result == 1).all()
    assert [dict(kept["options"])["adjoint"] for kept in lowerings] == [False, True]
