"""The GPU kernels inside a model: in the interpreter, and lowered for CUDA without a device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differentiation import loss_and_gradients
from flax import nnx

import medmamba_jax as mm
from medmamba_jax.ops import pallas_gpu
from medmamba_jax.ops.scan import IMPLEMENTATIONS

pytestmark = pytest.mark.nightly


@pytest.fixture
def kernels_anywhere(monkeypatch):
    """Lets the table take the kernels whatever the backend; returns how to set their mode."""

    def register(**mode):
        row = IMPLEMENTATIONS["pallas_gpu"]
        image = functools.partial(row.projected_image, **mode)
        row = dataclasses.replace(row, projected_image=image, refusal=pallas_gpu.refusal_of_shape)
        monkeypatch.setitem(IMPLEMENTATIONS, "pallas_gpu", row)

    return register


def arguments(config):
    """What `loss_and_gradients` takes but for images and labels."""
    model = mm.MedMamba(config, rngs=nnx.Rngs(0))
    model.train()
    return nnx.split(model, nnx.Param, ...)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="the golden tests do it compiled there")
def test_a_model_has_the_gradients_of_the_chunked_scan(kernels_anywhere):
    kernels_anywhere(interpret=True)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)), jnp.float32)
    labels = jnp.array([0, 2])
    results = {}
    for scan in ("pallas_gpu", "chunked"):
        config = mm.MedMambaConfig(
            depths=(2,),
            dims=(32,),
            num_classes=3,
            patch_size=8,
            drop_path_rate=0.0,
            scan_implementation=scan,
        )
        (loss, _), gradients = loss_and_gradients(*arguments(config), images, labels)
        results[scan] = loss, gradients
    (loss, gradients), (expected, gradients_expected) = results.values()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradients_expected))
    for gradient, wanted in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(gradients_expected), strict=True
    ):
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-5 * largest)


def test_the_training_pass_of_t_lowers_with_a_kernel_for_each_stage_and_pass(kernels_anywhere):
    kernels_anywhere()
    config = mm.MedMambaConfig.variant(
        "medmamba_t", num_classes=6, scan_implementation="pallas_gpu", compute_dtype="bfloat16"
    )
    images = jax.ShapeDtypeStruct((64, 224, 224, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((64,), jnp.int32)
    traced = loss_and_gradients.trace(*arguments(config), images, labels)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    # Four stages forward and backward; S1's backward pass also finds its segments' ends.
    assert text.count("stablehlo.custom_call @mosaic_gpu") == 9
