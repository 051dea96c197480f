"""The model against the official PyTorch model's numbers; see tests/golden/README.md."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close, relative_error
from differentiation import (
    TrainingPass,
    biases_before_batch_norm,
    evaluate,
    loss_and_gradients,
)
from flax import nnx
from golden import Golden


def nightly(*names):
    return [pytest.param(name, marks=pytest.mark.nightly) for name in names]


T = "medmamba_t_224"
WITH_ADAM = ["tiny", "conv_ssm_tiny"]
OTHER_SMALL = ["tiny_rect_odd", "tiny_gray_d_state8"]
FULL_SIZE = nightly("medmamba_s_224", "medmamba_b_224", "conv_ssm_224")
# A compilation of the backward pass each; test_torch_reference.py has one of the first version.
TRAINED = [pytest.param("tiny", marks=pytest.mark.slow), *nightly("conv_ssm_tiny", *OTHER_SMALL)]

pytestmark = pytest.mark.usefixtures("exact_products")


@functools.cache
def golden(name):
    return Golden(name)


def training_pass(case):
    """Checks the loss and the logits of the pass, and returns it."""
    result = TrainingPass(case.model, case.images, case.values["labels"])
    assert_close(result.logits, case.values["train/logits"], 2e-5, "logits")
    assert_close(result.loss, case.values["train/loss"], 1e-5, "loss")
    return result


@functools.partial(jax.jit, static_argnums=0)
def official_maps(graphdef, state, images):
    """The embedded patches, and each stage's map after merging, as the official `layers.{i}` is."""
    model = nnx.merge(graphdef, state)
    maps = {"patch_embed": model.patch_embed(images)}
    for i, features in enumerate(model(images, features_only=True)):
        last = i == len(model.merges)
        maps[f"layers.{i}"] = features if last else model.merges[i](features)
    return maps


@pytest.mark.parametrize("name", [*WITH_ADAM, T, *nightly(*OTHER_SMALL), *FULL_SIZE])
def test_eval_logits(name):
    case = golden(name)
    assert_close(evaluate(case.model, case.images), case.values["eval/logits"], 2e-5, "logits")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", *nightly("conv_ssm_tiny", *OTHER_SMALL, T), *FULL_SIZE])
def test_maps_on_the_way(name):
    case = golden(name)
    case.model.eval()
    expected = case.under("eval")
    maps = official_maps(*nnx.split(case.model), case.images)
    assert set(maps) == {key.split("/")[0] for key in expected} - {"logits"}
    for key, array in maps.items():
        array = np.asarray(array, np.float64)
        assert_close(array.mean((0, 1, 2)), expected[f"{key}/mean"], 2e-5, f"{key}: mean")
        assert_close(np.linalg.norm(array), expected[f"{key}/l2"], 2e-5, f"{key}: l2 norm")
        if key in expected:
            assert_close(array, expected[key], 2e-5, key)


def check_six_steps_of_adam(case):
    expected = case.values["adam/losses"]
    labels = jnp.asarray(case.values["labels"], jnp.int32)
    adam = optax.adam(float(case.values["adam/lr"]))
    case.model.train()
    graphdef, params, rest = nnx.split(case.model, nnx.Param, ...)
    moments = adam.init(params)

    @jax.jit
    def update(gradients, moments, params):
        updates, moments = adam.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments

    for step, loss_expected in enumerate(expected):
        (loss, (_, rest)), gradients = loss_and_gradients(
            graphdef, params, rest, case.images, labels
        )
        params, moments = update(gradients, moments, params)
        # A loss near 0 is measured against 1 % of the first.
        error = abs(float(loss) - loss_expected) / max(loss_expected, 0.01 * expected[0])
        assert error <= 1e-3, f"step {step}: {error:.2e}"

    logits = evaluate(nnx.merge(graphdef, params, rest), case.images)
    assert relative_error(logits, case.values["adam/eval_logits_after"]) <= 2e-3


# One test a case: workers would each compile and run the pass for tests of their own.
@pytest.mark.parametrize("name", TRAINED)
def test_training_pass_and_six_steps_of_adam(name):
    case = golden(name)
    result = training_pass(case)
    statistics = case.under("bn")
    assert statistics
    for key, buffer in statistics.items():
        assert_close(result.tensors[key], buffer, 1e-5, key)

    whole, samples = case.under("grad"), case.under("grad_sample")
    norms = case.under("grad_norm")
    gradients = result.gradients()
    assert set(gradients) == set(whole) | set(samples)
    largest = max(np.abs(x).max() for x in gradients.values())
    zero = biases_before_batch_norm(result.tensors)
    assert zero
    for key, gradient in gradients.items():
        if key in zero:
            assert np.abs(gradient).max() <= 2e-6 * largest, key
        elif key in whole:
            assert_close(gradient, whole[key], 2e-4, key)
        else:
            assert_close(gradient.ravel()[::7], samples[key], 2e-4, key)
            assert_close(np.linalg.norm(gradient), norms[key], 2e-4, f"{key}: norm")
    if name in WITH_ADAM:
        check_six_steps_of_adam(case)


@pytest.mark.nightly
def test_training_pass_of_t():
    case = golden(T)
    result = training_pass(case)
    norms, gradients = case.under("grad_norm"), result.gradients()
    assert set(norms) == set(gradients)
    largest = max(np.abs(x).max() for x in gradients.values())
    zero = biases_before_batch_norm(result.tensors)
    for key, gradient in gradients.items():
        if key in zero:
            assert np.abs(gradient).max() <= 2e-6 * largest, key
        else:
            assert_close(np.linalg.norm(gradient), norms[key], 5e-3, key)
