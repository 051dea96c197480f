"""Keeps lowered kernels in the process, and on disk in the folder of JAX's compiled programs.

Mosaic lowers a kernel in Python, which takes seconds. XLA compiles the result in one second. JAX
searches its persistent cache only after it has lowered a program, so without this module every
start would lower the kernels again.
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
from medmamba_jax.ops.pallas_gpu.problem import Problem


def lowered(make: Callable, problem: Problem, **options: Any) -> Callable:
    """Returns `make(problem, **options, interpret=False)`, lowered for CUDA only once.

    If `jax_compilation_cache_dir` is a local folder, the lowered kernel is also written there. Its
    name is a hash of everything that it depends on: the versions of jax and jaxlib, this package's
    source, the problem, the options and the arrays' shapes.
    """

    def call(*arrays):
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
        return _exported(make, problem, tuple(options.items()), shapes).call(*arrays)

    return call


@functools.cache
def _exported(make, problem, options, shapes) -> export.Exported:
    key = repr((jax.__version__, jaxlib.__version__, make.__name__, problem, options, shapes))
    name = hashlib.sha256(_source() + key.encode()).hexdigest()
    config: Any = jax.config  # JAX gives no types for its attributes
    folder = config.jax_compilation_cache_dir
    if not folder or "://" in folder or not config.jax_enable_compilation_cache:
        return _export(make, problem, options, shapes)
    path = pathlib.Path(folder) / f"medmamba_jax_{make.__name__}-{name}"
    # If the file is missing or damaged, the kernel is lowered again.
    with contextlib.suppress(Exception):
        return export.deserialize(bytearray(path.read_bytes()))
    exported = _export(make, problem, options, shapes)
    with contextlib.suppress(
        ImportError, OSError
    ):  # without flatbuffers or room on the disk, the next start takes longer
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, bytes(exported.serialize()))
    return exported


def _export(make, problem, options, shapes) -> export.Exported:
    kernel = jax.jit(make(problem, **dict(options), interpret=False))
    return export.export(kernel, platforms=("cuda",))(*shapes)


@functools.cache
def _source() -> bytes:
    folder = pathlib.Path(__file__).parent
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))
