"""Optimisers and schedules against PyTorch and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medmamba_jax.errors import UserError
from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    decay_mask,
    frozen_mask,
    learning_rate,
    make_optimizer,
)


def rates(steps, **options):
    schedule = learning_rate(TrainConfig(lr=0.1, **options), steps_per_epoch=10)
    return [float(schedule(step)) for step in steps]


def test_constant():
    np.testing.assert_allclose(rates([0, 7, 999], epochs=100), 0.1, rtol=1e-6)


def test_cosine_ends_at_zero():
    got = rates([0, 25, 50, 100], epochs=10, schedule="cosine")
    expected = [0.1, 0.05 * (1 + np.cos(np.pi / 4)), 0.05, 0.0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-9)


def test_warmup_then_cosine():
    got = rates([0, 10, 20, 60, 100], epochs=10, schedule="cosine", warmup_epochs=2.0)
    np.testing.assert_allclose(got, [0.0, 0.05, 0.1, 0.05, 0.0], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_step_drops_after_the_named_epochs(warmup):
    options = {"epochs": 100, "schedule": "step", "step_epochs": (5, 7), "warmup_epochs": warmup}
    got = rates([20, 49, 51, 69, 71], **options)
    np.testing.assert_allclose(got, [0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-5)


def trajectory(config, params, gradients):
    optimizer = make_optimizer(config, 10, params)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def make_problem():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)}
    gradients = [{k: rng.standard_normal(v.shape) for k, v in params.items()} for _ in range(5)]
    return jax.tree.map(lambda x: np.float32(x), (params, gradients))


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_equals_torch(torch, name):
    params, gradients = make_problem()
    tensors = {k: torch.nn.Parameter(torch.from_numpy(v.copy())) for k, v in params.items()}
    optimizers = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    optimizer = optimizers[name](tensors.values(), lr=0.01, weight_decay=0.1)
    for gradient in gradients:
        for key, tensor in tensors.items():
            tensor.grad = torch.from_numpy(gradient[key].copy())
        optimizer.step()
    got = trajectory(TrainConfig(optimizer=name, lr=0.01, weight_decay=0.1), params, gradients)
    for key, tensor in tensors.items():
        np.testing.assert_allclose(got[key], tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_adamw_first_step_by_hand():
    params, gradients = make_problem()
    got = trajectory(TrainConfig(lr=0.01, weight_decay=0.5), params, gradients[:1])
    for key, w in params.items():
        # Bias correction makes the first update the gradient's sign.
        expected = w - 0.01 * (np.sign(gradients[0][key]) + 0.5 * w)
        np.testing.assert_allclose(got[key], expected, rtol=1e-5)


def test_decay_of_weights_alone():
    params, gradients = make_problem()
    zero = jax.tree.map(jnp.zeros_like, gradients[:1])
    got = trajectory(TrainConfig(lr=0.1, weight_decay=0.5, decay="weights"), params, zero)
    np.testing.assert_allclose(got["kernel"], params["kernel"] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(got["bias"], params["bias"])


def test_mask_leaves_out_norms_biases_and_dynamics():
    names = ["kernel", "x_proj", "dt_weight", "bias", "scale", "dt_bias", "A_log", "D"]
    mask = decay_mask({"block": {name: np.zeros((2, 2)) for name in names}})["block"]
    assert [name for name in names if mask[name]] == ["kernel", "x_proj", "dt_weight"]


def test_clipping_bounds_the_global_norm():
    gradient = {"kernel": np.full((3, 2), 30.0, np.float32), "bias": np.zeros(2, np.float32)}
    config = TrainConfig(optimizer="adam", lr=1.0, weight_decay=0.0, clip_norm=1.0)
    optimizer = make_optimizer(config, 1, gradient)
    _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
    moments = [x for x in jax.tree.leaves(state) if x.shape == (3, 2)]
    # Adam's first moment is a tenth of the clipped gradient, whose norm is 1.
    np.testing.assert_allclose(np.linalg.norm(moments[0]), 0.1, rtol=1e-5)


PARTS = {
    "patch_embed": {"kernel": 1.0},
    "stages": {0: {"blocks": {"kernel": 2.0, "bias": 3.0}}},
    "head": {"kernel": 4.0, "bias": 5.0},
}


def moved(**changes):
    """How far AdamW moves each of `PARTS` in three steps of the same gradient."""
    params = jax.tree.map(jnp.float32, PARTS)
    gradients = [jax.tree.map(jnp.ones_like, params)] * 3
    after = trajectory(TrainConfig(lr=0.01, weight_decay=0.1, **changes), params, gradients)
    return jax.tree.map(lambda old, new: float(new - old), params, after)


def test_the_backbone_moves_slower_by_its_factor():
    """Of a single step without momentum it is exact: decoupled decay is scaled, too."""
    params = jax.tree.map(jnp.float32, PARTS)
    gradients = [jax.tree.map(jnp.ones_like, params)]
    plain, slow = (
        trajectory(TrainConfig(lr=0.01, lr_backbone_factor=factor), params, gradients)
        for factor in (1.0, 0.1)
    )
    plain, slow = (jax.tree.map(lambda x, y: float(x - y), tree, params) for tree in (plain, slow))
    for old, new in zip(
        jax.tree.leaves(plain["stages"]), jax.tree.leaves(slow["stages"]), strict=True
    ):
        np.testing.assert_allclose(new, 0.1 * old, rtol=1e-3)
    np.testing.assert_allclose(slow["head"]["bias"], plain["head"]["bias"], rtol=1e-6)


def test_frozen_parameters_stay_and_others_move_as_without():
    free, frozen = moved(), moved(freeze="patch_embed.*, stages.0.*.bias")
    assert frozen["patch_embed"]["kernel"] == frozen["stages"][0]["blocks"]["bias"] == 0
    assert frozen["head"] == free["head"] and free["head"]["bias"] != 0
    assert frozen["stages"][0]["blocks"]["kernel"] == free["stages"][0]["blocks"]["kernel"]


def test_clipping_counts_no_frozen_gradient():
    params = {"a": {"x": jnp.float32(0)}, "head": {"x": jnp.float32(0)}}
    gradient = {"a": {"x": jnp.float32(1000)}, "head": {"x": jnp.float32(0.5)}}
    config = TrainConfig(optimizer="adam", lr=1.0, weight_decay=0.0, clip_norm=1.0, freeze="a.*")
    optimizer = make_optimizer(config, 1, params)
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    moments = [float(x) for x in jax.tree.leaves(state) if x.dtype == jnp.float32]
    np.testing.assert_allclose(moments[0], 0.05, rtol=1e-5)  # unclipped, and none for "a"


def test_patterns_that_match_nothing_or_everything():
    with pytest.raises(UserError, match=r"'stage\.0' matches no parameter; .* stages\.0"):
        frozen_mask(PARTS, ["stage.0"])
    with pytest.raises(UserError, match="nothing is left to train"):
        frozen_mask(PARTS, ["*"])


def test_an_optimiser_and_a_schedule_of_ones_own(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "sgd", lambda schedule, weight_decay, mask: optax.sgd(schedule))
    monkeypatch.setitem(SCHEDULES, "halving", lambda config, steps, warmup: lambda step: 0.5**step)
    params, gradients = make_problem()
    got = trajectory(TrainConfig(optimizer="sgd", schedule="halving"), params, gradients)
    expected = params["bias"] - sum(0.5**i * g["bias"] for i, g in enumerate(gradients))
    np.testing.assert_allclose(got["bias"], expected, rtol=1e-5)
