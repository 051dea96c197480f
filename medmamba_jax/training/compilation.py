"""Compiles a run's programs, and keeps them for later starts."""

import contextlib
import hashlib
import pathlib
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded
from medmamba_jax.ops.backend import default_backend
from medmamba_jax.parallel import say

COMPILED = "~/.cache/medmamba-jax/compiled"

# Platform -> XLA's options for a run's programs (docs/performance.md has the times).
_OPTIONS: dict[str, dict[str, str | bool]] = {
    # In MedMamba's step cuBLAS multiplies matrices as fast as XLA's own kernels. XLA would first
    # compile and time many variants of these, which takes 8 of 60 seconds.
    "gpu": {"xla_gpu_enable_triton_gemm": False},
    # The step runs as fast as at the default level 3, and compiles in three quarters of the time.
    "cpu": {"xla_backend_optimization_level": "1"},
}

Result = TypeVar("Result")


def cache_compiled_programs() -> None:
    """Keeps compiled programs in `COMPILED`, so that the second start of a run is fast.

    Nothing changes where JAX has a cache folder already, or where the environment variable
    `JAX_ENABLE_COMPILATION_CACHE` turns the cache off.
    """
    config: Any = jax.config  # JAX gives no types for its attributes
    if config.jax_compilation_cache_dir is None and config.jax_enable_compilation_cache:
        try:
            folder = expanded(COMPILED)
        except UserError:  # there is no home folder
            return
        if default_backend() == "cpu":  # JAX's key lacks the CPU's instructions
            folder /= hashlib.sha256(_cpu().encode()).hexdigest()[:8]
        config.update("jax_compilation_cache_dir", str(folder))
    if config.jax_enable_compilation_cache:
        say(f"compiled programs are kept in {config.jax_compilation_cache_dir}")


def compile_step(step: jax.stages.Lowered, *others: Callable[[], object]) -> jax.stages.Compiled:
    """Compiles a training step for the platform of `default_backend`.

    A thread compiles. This thread waits, and so it hears signals such as Ctrl-C meanwhile.

    Args:
        step: the step.
        *others: what further threads do meanwhile, such as compiling other programs.
    """
    with ThreadPoolExecutor(1 + len(others)) as threads:
        compiled = threads.submit(step.compile, _options())
        for work in [threads.submit(other) for other in others]:
            work.result()
        return compiled.result()


def _options() -> dict[str, str | bool] | None:
    config: Any = jax.config
    if config.values["jax_disable_most_optimizations"]:  # options would turn some on again
        return None
    return _OPTIONS.get(default_backend())


def compile_beside(
    program: jax.stages.Lowered, work: Callable[[], Result]
) -> tuple[jax.stages.Compiled, Result]:
    """Compiles a program in a thread while this thread works.

    XLA does not hold Python's lock while it compiles. So both together take about as long as the
    longer one.

    Returns:
        The compiled program, and what `work` returned.
    """
    with ThreadPoolExecutor(1) as thread:
        compiled = thread.submit(program.compile, _options())
        result = work()
        return compiled.result(), result


def _cpu() -> str:
    """Returns a text that names this CPU's instructions."""
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    return f"{platform.machine()} {platform.processor()}"
