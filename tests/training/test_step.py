"""One training step, on a model so small that its gradient is easy to sum up."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

from medmamba_jax.models.layers import BatchNorm
from medmamba_jax.training.augmentation import Augmented
from medmamba_jax.training.losses import make_loss
from medmamba_jax.training.step import StepSpec, TrainState, eval_params, train_step

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 1), np.uint8)
LABELS = np.array([0, 1, 2, 1], np.int32)


class Linear(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(9, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x.reshape(len(x), -1))


def linear(**changes):
    """The step and the first state of gradient descent on a linear model."""
    graphdef, params = nnx.split(Linear())
    params = nnx.to_pure_dict(params)
    optimizer = optax.sgd(1.0)
    spec = StepSpec(
        graphdef=graphdef,
        optimizer=optimizer,
        normalize=lambda x: x / np.float32(255),
        loss=make_loss("cross_entropy", "multiclass", None, {"label_smoothing": 0.0}),
        frozen=jax.tree.map(lambda _: False, params),
    )
    seed = jax.numpy.uint32(7)
    state = TrainState(jax.numpy.int32(0), params, {}, {}, optimizer.init(params), seed)
    return dataclasses.replace(spec, **changes), state


@pytest.fixture(scope="module")
def step():
    """Returns a function (rows, weights) -> parameters after a step of gradient descent, loss."""
    spec, state = linear()
    jitted = jax.jit(functools.partial(train_step, spec=spec))

    def step(rows, weights=None):
        batch = {"image": IMAGES[rows], "label": LABELS[rows]}
        if weights is not None:
            batch["weight"] = np.asarray(weights, np.float32)
        after, outputs = jitted(state, batch)
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


BATCH = {"image": IMAGES, "label": LABELS}


def test_images_are_augmented_inside_the_step_by_seed_and_step():
    keys = []

    def brighter(key, images):
        keys.append(np.asarray(jax.random.key_data(key)))
        return Augmented(images + np.uint8(1), None)

    spec, state = linear(augment=brighter)
    after, _ = train_step(state, BATCH, spec=spec)
    plain, _ = linear()
    expected, _ = train_step(state, BATCH | {"image": IMAGES + np.uint8(1)}, spec=plain)
    assert_close(after.params, expected.params)
    train_step(after, BATCH, spec=spec)
    expected_keys = [jax.random.fold_in(jax.random.key(7), step) for step in (0, 1)]
    for key, expected_key in zip(keys, expected_keys, strict=True):
        np.testing.assert_array_equal(key, jax.random.key_data(expected_key))


def mixed(share):
    """Leaves the images as they are, and says that this share of each is its own."""
    return lambda key, images: Augmented(images, jax.numpy.float32(share))


def test_the_labels_of_mixed_images_are_weighed():
    weights = np.array([1, 2, 0.5, 3], np.float32)
    spec, state = linear(augment=mixed(0.7))
    _, outputs = jax.jit(functools.partial(train_step, spec=spec))(
        state, BATCH | {"weight": weights}
    )
    log_p = np.asarray(jax.nn.log_softmax(outputs["logits"]), np.float64)
    own, other = (
        -(w * log_p[range(4), y]).sum() / w.sum()
        for y, w in ((LABELS, weights), (np.roll(LABELS, 1), np.roll(weights, 1)))
    )
    np.testing.assert_allclose(outputs["loss"], 0.7 * own + 0.3 * other, rtol=1e-5)
    np.testing.assert_array_equal(outputs["label"], LABELS)
    assert abs(own - other) > 1e-3


def test_unknown_labels_of_mixed_images_do_not_count():
    loss = make_loss("binary_cross_entropy", "multilabel", None, {"label_smoothing": 0.0})
    labels = np.array([[1, 0, np.nan], [0, np.nan, 1], [1, 1, 0], [np.nan, 0, 0]], np.float32)
    spec, state = linear(augment=mixed(0.4), loss=loss)
    _, outputs = jax.jit(functools.partial(train_step, spec=spec))(state, BATCH | {"label": labels})
    p = 1 / (1 + np.exp(-np.asarray(outputs["logits"], np.float64)))
    own, other = (
        np.nanmean(-y * np.log(p) - (1 - y) * np.log(1 - p)) for y in (labels, labels[[3, 0, 1, 2]])
    )
    np.testing.assert_allclose(outputs["loss"], 0.4 * own + 0.6 * other, rtol=1e-5)


def test_an_image_that_is_all_its_own_has_its_own_loss():
    (spec, state), (plain, _) = linear(augment=mixed(1.0)), linear()
    after, _ = train_step(state, BATCH, spec=spec)
    expected, _ = train_step(state, BATCH, spec=plain)
    assert_close(after.params, expected.params)


def test_the_moving_average_follows_its_closed_form():
    spec, state = linear(ema_decay=0.15)
    state = dataclasses.replace(state, average={"params": state.params, "statistics": {}})
    average = np.asarray(state.params["layer"]["kernel"], np.float64)
    for step in range(5):
        state, _ = train_step(state, BATCH, spec=spec)
        decay = min(0.15, (1 + step) / (10 + step))  # 0.1, then 0.15
        kernel = np.asarray(state.params["layer"]["kernel"], np.float64)
        average = decay * average + (1 - decay) * kernel
    params, _ = eval_params(state)
    np.testing.assert_allclose(params["layer"]["kernel"], average, rtol=1e-5)
    assert np.abs(average - kernel).max() > 1e-4
    assert "average" in state.to_parts()


def test_without_an_average_the_last_parameters_are_evaluated():
    spec, state = linear()
    state, _ = train_step(state, BATCH, spec=spec)
    assert eval_params(state)[0] is state.params and "average" not in state.to_parts()


def test_a_frozen_parameter_has_no_gradient():
    frozen = {"layer": {"kernel": True, "bias": False}}
    (spec, state), (plain, _) = linear(frozen=frozen), linear()
    after, outputs = train_step(state, BATCH, spec=spec)
    expected, _ = train_step(state, BATCH, spec=plain)
    kernel, bias = after.params["layer"]["kernel"], after.params["layer"]["bias"]
    np.testing.assert_array_equal(kernel, state.params["layer"]["kernel"])
    np.testing.assert_allclose(bias, expected.params["layer"]["bias"], rtol=1e-6)
    moved = np.asarray(state.params["layer"]["bias"]) - bias  # the rate is 1
    np.testing.assert_allclose(outputs["grad_norm"], np.linalg.norm(moved), rtol=1e-6)


MANY = np.random.default_rng(1).integers(0, 256, (8, 3, 3, 1), np.uint8)
PROBLEMS = {
    "plain": ("cross_entropy", "multiclass", None, np.array([0, 1, 2, 1, 0, 0, 2, 0])),
    "class weights": (
        "cross_entropy",
        "multiclass",
        [1, 5, 0.2],
        np.array([0, 0, 0, 1, 2, 2, 1, 1]),
    ),
    # The first part has one known label, and the second has many.
    "unknown": (
        *("binary_cross_entropy", "multilabel", [1, 3, 0.5]),
        np.where(np.arange(24).reshape(8, 3) % 5 < 3, np.nan, np.arange(24).reshape(8, 3) % 2),
    ),
}


@pytest.mark.parametrize("share", [None, 0.7])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_batch_in_parts_has_the_gradient_of_the_whole_batch(problem, share):
    name, task, class_weights, labels = PROBLEMS[problem]
    class_weights = None if class_weights is None else np.array(class_weights, np.float32)
    batch = {
        "image": MANY,
        "label": labels.astype(np.float32 if labels.ndim > 1 else np.int32),
        "weight": np.array([1, 2, 0.5, 3, 1, 0.1, 7, 1], np.float32),
    }
    loss = make_loss(name, task, class_weights, {"label_smoothing": 0.1})
    spec, state = linear(loss=loss, augment=None if share is None else mixed(share))
    expected, whole = train_step(state, batch, spec=spec)
    for parts in (2, 8):
        in_parts = dataclasses.replace(spec, accumulate=parts)
        after, outputs = train_step(state, batch, spec=in_parts)
        assert_close(after.params, expected.params)
        assert_close(outputs, whole)
    moved = expected.params["layer"]["kernel"] - state.params["layer"]["kernel"]
    assert np.abs(moved).max() > 1e-2


class Noisy(nnx.Module):
    """A BatchNorm and dropout, as MedMamba keeps them."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = BatchNorm(1, "float32", rngs)
        self.layer = nnx.Linear(9, 3, rngs=rngs)
        self.dropout_rng = rngs.dropout.fork()

    def __call__(self, x):
        self.drawn = nnx.BatchStat(jax.random.uniform(self.dropout_rng()))
        return self.layer(self.norm(x).reshape(len(x), -1))


def noisy_model():
    model = Noisy()
    model(np.zeros((2, 3, 3, 1), np.float32))  # makes `drawn`
    return model


def test_each_part_has_its_own_statistics_and_random_numbers():
    """Rows 0, 2, ... are the first part."""
    graphdef, *states = nnx.split(noisy_model(), nnx.Param, nnx.BatchStat, ...)
    params, statistics, random = map(nnx.to_pure_dict, states)
    spec, _ = linear(graphdef=graphdef, frozen=jax.tree.map(lambda _: False, params), accumulate=2)
    state = TrainState(
        jax.numpy.int32(0),
        params,
        statistics,
        random,
        spec.optimizer.init(params),
        jax.numpy.uint32(7),
    )
    labels = PROBLEMS["plain"][-1].astype(np.int32)
    after, outputs = train_step(state, {"image": MANY, "label": labels}, spec=spec)
    reference, mean = noisy_model(), 0.0
    for part in (MANY[::2] / np.float32(255), MANY[1::2] / np.float32(255)):
        logits = reference(part)
        mean += 0.1 * (part.mean() - mean)
    np.testing.assert_allclose(outputs["logits"][1::2], logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after.statistics["norm"]["mean"], [mean], rtol=1e-5)
    assert after.statistics["norm"]["num_batches_tracked"] == 1 + 2
    assert after.statistics["drawn"] == reference.drawn[...]  # the second draw of the same stream


def test_the_norm_of_each_gradient_is_returned():
    spec, state = linear()
    _, outputs = train_step(state, BATCH, spec=spec)
    after, _ = train_step(state, BATCH, spec=spec)  # gradient descent with a rate of 1
    gradients = jax.tree.map(lambda x, y: np.asarray(x - y), state.params, after.params)
    norms = [np.linalg.norm(x) for x in jax.tree.leaves(gradients)]
    np.testing.assert_allclose(outputs["grad_norms"], norms, rtol=1e-4)
    np.testing.assert_allclose(outputs["grad_norm"], np.linalg.norm(norms), rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_skipped(bad):
    spec, state = linear(optimizer=optax.adam(0.1), skip_nonfinite=True)
    average = jax.tree.map(jax.numpy.copy, {"params": state.params, "statistics": {}})
    opt_state = spec.optimizer.init(state.params)
    state = dataclasses.replace(state, opt_state=opt_state, average=average)
    weighted = BATCH | {"weight": np.array([1, bad, 1, 1], np.float32)}
    after, outputs = train_step(state, weighted, spec=spec)
    assert not np.isfinite(outputs["loss"]) and after.step == state.step + 1
    chex.assert_trees_all_equal(dataclasses.replace(after, step=state.step), state)
    plain = dataclasses.replace(spec, skip_nonfinite=False)
    broken, _ = train_step(state, weighted, spec=plain)
    assert np.isnan(jax.tree.leaves(broken.params)[0]).all()
    taken, expected = (train_step(state, BATCH, spec=x)[0] for x in (spec, plain))
    chex.assert_trees_all_equal(taken, expected)
