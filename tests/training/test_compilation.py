import types

import jax

from medmamba_jax.training.compilation import compile_step


def test_the_options_of_a_gpu_are_for_a_step_that_runs_there(monkeypatch):
    step = types.SimpleNamespace(compile=lambda options: options)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compile_step(step) == {"xla_gpu_enable_triton_gemm": False}
    with jax.default_device("cpu"):
        assert compile_step(step) is None
