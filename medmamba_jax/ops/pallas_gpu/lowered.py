"""Keeps lowered kernels in the process, and on disk in the folder of JAX's compiled programs.

Mosaic lowers a kernel in Python, which takes seconds. XLA compiles the result in one second. JAX
searches its persistent cache only after it has lowered a program, so without this module every
start would lower the kernels again.

A kernel is lowered when the program around it is lowered, and not when that program is traced. The
reason is that JAX also traces forward passes that no program runs, such as that of a `custom_vjp`
whose gradient is taken.
"""

import contextlib
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jaxlib
from jax import export

from medmamba_jax.files import write_atomically
from medmamba_jax.ops.pallas_gpu.mosaic import Primitive, mlir
from medmamba_jax.ops.pallas_gpu.problem import Problem


def lowered(make: Callable, problem: Problem, **options: Any) -> Callable:
    """Returns `make(problem, **options, interpret=False)`, lowered for CUDA only once.

    If `jax_compilation_cache_dir` is a local folder, the lowered kernel is also written there. Its
    name is a hash of everything that it depends on: the versions of jax and jaxlib, this package's
    source, the problem, the options and the arrays' shapes.
    """

    return functools.partial(
        _kernel.bind, make=make, problem=problem, options=tuple(options.items())
    )


# The parameters are those of `lowered`; the options are pairs of name and value.
_kernel = Primitive("medmamba_jax_kernel")
_kernel.multiple_results = True


@functools.cache
def _jitted(make, problem, options) -> Any:
    """Returns what runs outside of `jax.jit`. It is kept, so that JAX compiles a kernel once."""
    return jax.jit(functools.partial(_kernel.bind, make=make, problem=problem, options=options))


_kernel.def_impl(lambda *arrays, **kept: _jitted(**kept)(*arrays))


@_kernel.def_abstract_eval
def _results(*arrays, make, problem, options):
    return _results_of(make, problem, options, _shapes(arrays))


def _lower(context, *operands, make, problem, options):
    exported = _exported(make, problem, options, _shapes(context.avals_in))
    return mlir.lower_fun(exported.call, multiple_results=True)(context, *operands)


mlir.register_lowering(_kernel, _lower, platform="cuda")


def _shapes(arrays):
    return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)


@functools.cache
def _results_of(make, problem, options, shapes):
    """Returns the results' shapes and dtypes, as JAX's tracer describes them."""
    stored = _stored(make, problem, options, shapes)
    if stored is not None:
        return list(stored.out_avals)
    results = jax.eval_shape(_built(make, problem, options), *shapes)
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in results]


@functools.cache
def _exported(make, problem, options, shapes) -> export.Exported:
    stored = _stored(make, problem, options, shapes)
    if stored is not None:
        return stored
    exported = export.export(_built(make, problem, options), platforms=("cuda",))(*shapes)
    path = _path(make, problem, options, shapes)
    if path is not None:
        with contextlib.suppress(
            ImportError, OSError
        ):  # without flatbuffers or room on the disk, the next start takes longer
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, bytes(exported.serialize()))
    return exported


@functools.cache
def _built(make, problem, options) -> Any:
    return jax.jit(make(problem, **dict(options), interpret=False))


def _stored(make, problem, options, shapes) -> export.Exported | None:
    """Returns the kernel from its file; None if the file is missing or damaged."""
    path = _path(make, problem, options, shapes)
    if path is not None:
        with contextlib.suppress(Exception):
            return export.deserialize(bytearray(path.read_bytes()))
    return None


def _path(make, problem, options, shapes) -> pathlib.Path | None:
    config: Any = jax.config  # JAX gives no types for its attributes
    folder = config.jax_compilation_cache_dir
    if not folder or "://" in folder or not config.jax_enable_compilation_cache:
        return None
    key = repr((jax.__version__, jaxlib.__version__, make.__name__, problem, options, shapes))
    name = hashlib.sha256(_source() + key.encode()).hexdigest()
    return pathlib.Path(folder) / f"medmamba_jax_{make.__name__}-{name}"


@functools.cache
def _source() -> bytes:
    folder = pathlib.Path(__file__).parent
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))
