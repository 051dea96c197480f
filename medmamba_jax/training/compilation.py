"""The cache of compiled programs."""

import contextlib
import hashlib
import pathlib
import platform
from typing import Any

import jax

from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded
from medmamba_jax.parallel import say

COMPILED = "~/.cache/medmamba-jax/compiled"


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
        if jax.default_backend() == "cpu":  # JAX's key lacks the CPU's instructions
            folder /= hashlib.sha256(_cpu().encode()).hexdigest()[:8]
        config.update("jax_compilation_cache_dir", str(folder))
    if config.jax_enable_compilation_cache:
        say(f"compiled programs are kept in {config.jax_compilation_cache_dir}")


def _cpu() -> str:
    """Returns a text that names this CPU's instructions."""
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    return f"{platform.machine()} {platform.processor()}"
