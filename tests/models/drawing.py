"""A trap for code that draws initial weights although it needs none."""

import jax
import jax.numpy as jnp

from medmamba_jax.models import initializers


def forbid_drawing(monkeypatch) -> None:
    """Makes drawing an initial weight an error. Tracing a model's shapes stays possible."""

    def drawn():
        raise AssertionError("an initial weight was drawn")

    def initializer(key, shape, dtype=jnp.float32):
        # Tracing passes this line; only computing calls `drawn`.
        return jax.pure_callback(drawn, jax.ShapeDtypeStruct(shape, dtype))

    for name in ("linear", "conv", "dt_bias", "A_log"):
        monkeypatch.setattr(initializers, name, initializer)
    for name in ("uniform", "fan_in_uniform"):
        monkeypatch.setattr(initializers, name, lambda bound: initializer)
