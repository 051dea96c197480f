"""Settings for the tests of operations."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """Compiling is most of these tests' time, and LLVM's optimisations are most of that."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
