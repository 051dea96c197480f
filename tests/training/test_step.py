"""One training step, on a model so small that its gradient is easy to sum up."""

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

from medmamba_jax.training.losses import cross_entropy
from medmamba_jax.training.step import StepSpec, TrainState, train_step

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 1), np.uint8)
LABELS = np.array([0, 1, 2, 1], np.int32)


class Linear(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(9, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def step():
    """Returns a function (rows, weights) -> parameters after a step of gradient descent, loss."""
    graphdef, params, variables = nnx.split(Linear(), nnx.Param, ...)
    params, variables = nnx.to_pure_dict(params), nnx.to_pure_dict(variables)
    optimizer = optax.sgd(1.0)
    spec = StepSpec(graphdef, graphdef, optimizer, lambda x: x / np.float32(255), cross_entropy)
    state = TrainState(jax.numpy.int32(0), params, variables, optimizer.init(params))

    def step(rows, weights=None):
        batch = {"image": IMAGES[rows], "label": LABELS[rows]}
        if weights is not None:
            batch["weight"] = np.asarray(weights, np.float32)
        after, outputs = train_step(state, batch, spec=spec)
        return after.params, outputs["loss"]

    return step


def assert_close(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_an_image_of_weight_2_is_the_image_twice(step):
    assert_close(step([0, 1, 2, 3], [1, 2, 1, 3]), step([0, 1, 1, 2, 3, 3, 3]))


def test_weights_alike_are_none(step):
    assert_close(step([0, 1, 2, 3], [0.3] * 4), step([0, 1, 2, 3]))


def test_weights_change_the_step(step):
    (weighted, _), (plain, _) = step([0, 1, 2, 3], [1, 2, 1, 3]), step([0, 1, 2, 3])
    assert np.abs(weighted["layer"]["kernel"] - plain["layer"]["kernel"]).max() > 1e-3
