"""What is printed of the scan before training is what the model runs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import medmamba_jax as mm
from medmamba_jax.models.scans import scans
from medmamba_jax.ops.scan import IMPLEMENTATIONS


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_cases_are_those_of_the_model(monkeypatch, compute_dtype):
    seen = []

    def record(case):
        seen.append(case)

    row = dataclasses.replace(IMPLEMENTATIONS["chunked"], refusal=record)
    monkeypatch.setitem(IMPLEMENTATIONS, "chunked", row)
    config = mm.MedMambaConfig(
        depths=(1, 1, 1),
        dims=(8, 16, 32),
        num_classes=2,
        d_state=3,
        compute_dtype=compute_dtype,
        scan_implementation="chunked",
    )
    height, width = 70, 45
    assert scans(config, height, width) == ("chunked",) * 3
    announced = list(seen)
    seen.clear()

    def run(images):
        model = mm.MedMamba(config, rngs=nnx.Rngs(0))
        model.eval()
        return model(images)

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
    assert list(dict.fromkeys(seen)) == announced
