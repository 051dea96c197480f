"""Lowered kernels, kept: in the process, and on disk where JAX keeps compiled programs.

Mosaic lowers a kernel in seconds, in Python; what comes out compiles in one. JAX's persistent cache
is asked for a program only once that is lowered, so without this every start would lower again.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jaxlib
from jax import export

from medmamba_jax.ops.pallas_gpu.problem import Problem


def lowered(make: Callable, problem: Problem, **options: Any) -> Callable:
    """Returns `make(problem, **options, interpret=False)`, lowered for CUDA once for all.

    With `jax_compilation_cache_dir` set to a local folder it is also written there, under a name
    made of everything that it depends on: versions, this package's source, problem and options.
    """

    def call(*arrays):
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
        return _exported(make, problem, tuple(options.items()), shapes).call(*arrays)

    return call


@functools.cache
def _exported(make, problem, options, shapes) -> export.Exported:
    key = repr((jax.__version__, jaxlib.__version__, make.__name__, problem, options, shapes))
    name = hashlib.sha256(_source() + key.encode()).hexdigest()
    folder = jax.config.jax_compilation_cache_dir
    if not folder or "://" in folder or not jax.config.jax_enable_compilation_cache:
        return _export(make, problem, options, shapes)
    path = pathlib.Path(folder) / f"medmamba_jax_{make.__name__}-{name}"
    # Whatever is wrong with a file, the kernel can be lowered again.
    with contextlib.suppress(Exception):
        return export.deserialize(bytearray(path.read_bytes()))
    exported = _export(make, problem, options, shapes)
    with contextlib.suppress(ImportError, OSError):  # no flatbuffers, no room: it costs time only
        _write(path, exported.serialize())
    return exported


def _export(make, problem, options, shapes) -> export.Exported:
    kernel = jax.jit(make(problem, **dict(options), interpret=False))
    return export.export(kernel, platforms=("cuda",))(*shapes)


def _write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all; another process may be writing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


@functools.cache
def _source() -> bytes:
    folder = pathlib.Path(__file__).parent
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))
