import types

import jax
import pytest

from medmamba_jax.training.compilation import compile_step

PROGRAM = types.SimpleNamespace(compile=lambda options=None: options)
OFF = "jax_disable_most_optimizations"


@pytest.fixture
def optimizations():
    """Turns XLA's optimisations on or off: a function (bool)."""
    before = jax.config.values[OFF]
    yield lambda on: jax.config.update(OFF, not on)
    jax.config.update(OFF, before)


def test_a_program_gets_the_options_of_the_platform_that_it_runs_on(monkeypatch, optimizations):
    optimizations(True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compile_step(PROGRAM) == {"xla_gpu_enable_triton_gemm": False}
    with jax.default_device("cpu"):
        assert compile_step(PROGRAM) == {"xla_backend_optimization_level": "1"}
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert compile_step(PROGRAM) is None


def test_no_option_turns_optimisations_on_that_a_user_turned_off(optimizations):
    optimizations(False)
    assert compile_step(PROGRAM) is None


def test_xla_knows_the_options_of_a_cpu(optimizations):
    optimizations(True)
    with jax.default_device("cpu"):
        assert compile_step(jax.jit(lambda x: 2 * x).lower(3.0))(4.0) == 8
