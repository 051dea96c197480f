"""The model against a plain PyTorch one in float64, at sizes the golden files do not have."""

import numpy as np
import pytest
from closeness import assert_close
from differentiation import TrainingPass, biases_before_batch_norm, evaluate, is_buffer
from golden import recipe_model, recipe_weights
from recipe import recipe_images

import medmamba_jax as mm

pytestmark = pytest.mark.usefixtures("exact_products")

CASES = {
    "odd_rectangle": ((33, 47), {"depths": (1, 2, 1), "dims": (8, 16, 32), "in_channels": 2}),
    "odd_maps_square": ((72, 72), {"depths": (2, 1, 1), "dims": (12, 24, 48)}),
    "almost_square_first_version": (
        (64, 65),
        {"depths": (1, 2), "dims": (8, 16), "block": "conv_ssm", "d_state": 3},
    ),
    "patches_of_two": ((17, 22), {"depths": (2, 1), "dims": (10, 20), "patch_size": 2}),
    "first_version_patches_of_seven": (
        (50, 37),
        {"depths": (1, 1), "dims": (6, 12), "patch_size": 7, "block": "conv_ssm"},
    ),
}


# The compiling of each takes long. These two have an odd size, an embedding of their own, and both
# blocks.
QUICK = ("odd_rectangle", "first_version_patches_of_seven")


@pytest.fixture(
    scope="module",
    params=[x if x in QUICK else pytest.param(x, marks=pytest.mark.nightly) for x in CASES],
)
def case(request, torch):
    """Our model, the images and labels, and the reference with the same weights in float64."""
    import torch_reference

    (height, width), fields = CASES[request.param]
    config = mm.MedMambaConfig(**{"num_classes": 5, "d_state": 7, "drop_path_rate": 0.0, **fields})
    model, weights = recipe_model(config, seed=11), recipe_weights(config, seed=11)
    reference = torch_reference.MedMamba(config).double()
    reference.load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()})
    images = recipe_images((3, config.in_channels, height, width), seed=11)
    return model, reference, images, np.array([0, 3, 1])


def test_eval_logits(case):
    import torch

    model, reference, images, _ = case
    with torch.no_grad():
        expected = reference.eval()(torch.from_numpy(images).double())
    assert_close(evaluate(model, images.transpose(0, 2, 3, 1)), expected, 1e-5, "logits")


def test_training_pass(case):
    import torch

    model, reference, images, labels = case
    logits = reference.train()(torch.from_numpy(images).double())
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    loss.backward()
    result = TrainingPass(model, images.transpose(0, 2, 3, 1), labels)
    assert_close(result.logits, logits.detach(), 1e-5, "logits")
    assert_close(result.loss, loss.detach(), 1e-5, "loss")

    for name, buffer in reference.named_buffers():
        assert_close(result.tensors[name], buffer, 1e-5, name)
    gradients = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    largest = max(np.abs(x).max() for x in gradients.values())
    zero = biases_before_batch_norm(result.tensors)
    assert {name for name in result.tensors if not is_buffer(name)} == set(gradients)
    for name, expected in gradients.items():
        if name in zero:
            assert np.abs(expected).max() <= 1e-12 * largest, name
            assert np.abs(result.tensors[name]).max() <= 2e-6 * largest, name
        else:
            assert_close(result.tensors[name], expected, 1e-4, name)
