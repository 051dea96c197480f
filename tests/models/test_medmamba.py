"""What the whole model promises: shapes, modes, randomness, dtypes and rematerialisation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, relative_error
from differentiation import TrainingPass, evaluate, is_buffer
from flax import nnx
from golden import recipe_model

import medmamba_jax as mm
from medmamba_jax.models import abstract_model, medmamba

SMALL = {"depths": (2, 1), "dims": (8, 16), "num_classes": 3, "d_state": 2}
ONE_STAGE = {"depths": (2,), "dims": (8,)}  # compiles in half of the time


def make(**fields):
    """A model in training mode."""
    return recipe_model(mm.MedMambaConfig(**{**SMALL, **fields}), seed=0)


@functools.partial(jax.jit, static_argnums=0)
def _call(graphdef, state, images):
    model = nnx.merge(graphdef, state)
    logits = model(images)
    return logits, nnx.state(model)


def call(model, images):
    """What `model(images)` returns and does to the model, compiled."""
    logits, state = _call(*nnx.split(model), images)
    nnx.update(model, state)
    return logits


def features(model, images):
    """The maps of a model in evaluation mode, compiled."""
    return jax.jit(lambda x: model(x, features_only=True))(images)


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def statistics(model):
    return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


def same(tree, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, tree, other)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (100, 70)])
def test_stage_maps_have_strides_4_to_32(height, width):
    config = mm.MedMambaConfig.variant("medmamba_nano")
    model = abstract_model(config)
    model.eval()
    graphdef, state = nnx.split(model)
    maps = jax.eval_shape(
        lambda state, x: nnx.merge(graphdef, state)(x, features_only=True),
        state,
        jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32),
    )
    assert [x.shape for x in maps] == [
        (2, height // stride, width // stride, dim)
        for stride, dim in zip((4, 8, 16, 32), config.dims, strict=True)
    ]


@pytest.mark.parametrize("shape", [(1, 31, 32, 3), (1, 64, 28, 3)])
def test_small_images_are_refused_by_name_of_the_limit(shape):
    config = mm.MedMambaConfig.variant("medmamba_nano")
    model = abstract_model(config)
    with pytest.raises(ValueError, match=f"at least 32 px.*got {shape[1]}x{shape[2]}"):
        model(jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 32, 32, 1), (32, 32, 3), (1, 3, 32, 32)])
def test_wrong_axes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(b, h, w, 3\)"):
        make()(jnp.zeros(shape))


@pytest.mark.slow
def test_no_classes_means_pooled_features():
    model = make(num_classes=0)
    model.eval()
    x = images(2, 16, 12, 3)
    pooled, maps = call(model, x), features(model, x)
    assert pooled.shape == (2, 16)
    np.testing.assert_allclose(pooled, maps[-1].mean((1, 2)), rtol=1e-6, atol=1e-6)


def test_pooled_features_are_what_the_head_reads():
    model, x = make(**ONE_STAGE, compute_dtype="bfloat16"), images(2, 16, 12, 3)
    model.eval()
    pooled, logits = jax.jit(lambda x: (model.pooled(x), model(x)))(x)
    assert pooled.shape == (2, 8) and pooled.dtype == jnp.float32
    weight, bias = (np.asarray(x[...]) for x in (model.head.kernel, model.head.bias))
    np.testing.assert_allclose(logits, pooled @ weight + bias, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"must be \(b, h, w, 3\)"):
        model.pooled(x[..., :1])


@pytest.mark.slow
def test_statistics_change_in_training_alone():
    model, x = make(drop_path_rate=0.0), images(2, 16, 12, 3)
    before = statistics(model)
    logits = call(model, x)  # a new model is in training mode
    trained = statistics(model)
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, before, trained)))

    model.eval()
    first = call(model, x)
    assert same(statistics(model), trained)
    np.testing.assert_array_equal(call(model, x), first)
    assert relative_error(first, logits) > 1e-3

    model.train()
    call(model, x)
    assert not same(statistics(model), trained)


@pytest.mark.slow
def test_a_view_evaluates_without_changing_the_model():
    model, x = make(**ONE_STAGE, drop_path_rate=0.5), images(2, 16, 12, 3)
    call(model, x)
    after_training = statistics(model)
    view = nnx.view(model, deterministic=True, use_running_average=True)
    from_view = call(view, x)
    assert same(statistics(model), after_training)
    assert not model.deterministic
    model.eval()
    np.testing.assert_array_equal(from_view, call(model, x))


@pytest.mark.slow
def test_eval_looks_at_each_image_alone():
    model = make(**ONE_STAGE)
    call(model, images(4, 16, 12, 3, seed=1))  # statistics other than the initial ones
    x = images(3, 16, 12, 3)
    together = evaluate(model, x)
    for i in range(3):
        alone = evaluate(model, np.stack([x[i]] * 3))
        assert_close(alone[0], together[i], 1e-6, f"image {i}")
    changed = evaluate(model, np.concatenate([x[:1], 5 * x[1:]]))
    np.testing.assert_array_equal(changed[0], together[0])
    assert relative_error(changed[1], together[1]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_each_rate_makes_training_random_and_eval_not(rate):
    rates = {"drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0}
    model, x = make(**ONE_STAGE, **{**rates, rate: 0.5}), images(8, 8, 8, 3)
    first, second = call(model, x), call(model, x)
    assert relative_error(first, second) > 1e-3
    model.eval()
    np.testing.assert_array_equal(call(model, x), call(model, x))


def test_training_is_a_function_of_the_seed():
    model, x = make(**ONE_STAGE, drop_path_rate=0.5), images(8, 8, 8, 3)
    again = nnx.clone(model)
    np.testing.assert_array_equal(call(model, x), call(again, x))


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_logits_in_float32():
    x = images(4, 16, 12, 3)
    model, half = make(drop_path_rate=0.0), make(drop_path_rate=0.0, compute_dtype="bfloat16")
    logits = call(half, x)
    assert logits.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(half, nnx.Param)))
    half.eval()
    maps = jax.eval_shape(lambda x: half(x, features_only=True), x)
    assert all(x.dtype == jnp.bfloat16 for x in maps)
    # A rounding is 2**-9 of a value. A block rounds about 16 times in a row and the embedding
    # and merging 4 times each: independent errors add up to sqrt(16 * 3 + 8) roundings, and
    # logits, which are differences of larger numbers, may show twice that.
    tolerance = 2 * (16 * 3 + 8) ** 0.5 * 2.0**-9
    assert 1e-6 < relative_error(logits, call(model, x)) < tolerance


@pytest.mark.nightly
def test_rematerialisation_changes_nothing_but_memory():
    x, labels = images(4, 16, 12, 3), np.array([0, 1, 2, 0])
    plain = TrainingPass(make(drop_path_rate=0.5), x, labels).tensors
    again = TrainingPass(make(drop_path_rate=0.5, remat=True), x, labels).tensors
    for name, expected in plain.items():
        if name.endswith("num_batches_tracked"):
            assert again[name] == 1
        elif is_buffer(name):
            assert_close(again[name], expected, 1e-6, name)
    largest = max(np.abs(x).max() for name, x in plain.items() if not is_buffer(name))
    for name, expected in plain.items():
        if not is_buffer(name):
            assert np.abs(again[name] - expected).max() <= 1e-5 * largest, name


def test_rematerialised_stages_hold_a_checkpoint():
    x = images(1, 8, 8, 3)

    def text(**fields):
        graphdef, state = nnx.split(make(**fields))
        return str(jax.make_jaxpr(lambda state: nnx.merge(graphdef, state)(x))(state))

    # JAX prints `jax.checkpoint` as remat2, later releases as checkpoint.
    found = [
        len(re.findall(r"= (?:remat2?|checkpoint)\[", text(remat=remat)))
        for remat in (False, (True, False), True)
    ]
    # The depthwise convolution has one of its own in every stage.
    assert [count - found[0] for count in found] == [0, 1, 2]


@pytest.mark.slow
def test_blocks_that_run_one_after_another_give_what_the_loop_gives(monkeypatch):
    """Backends other than a CPU run them one after another, with the same random numbers."""
    model = make(**ONE_STAGE, drop_path_rate=0.5, attn_drop_rate=0.1)
    graphdef, state = nnx.split(model)
    results = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(medmamba, "default_backend", lambda backend=backend: backend)
        # A new function each time, because JAX keeps what it has traced.
        run = jax.jit(lambda state, x: _call.__wrapped__(graphdef, state, x))
        logits, after = run(state, images(4, 8, 8, 3))
        results.append(
            [logits, *jax.tree.leaves(nnx.to_pure_dict(nnx.filter_state(after, nnx.BatchStat)))]
        )
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.nightly
def test_the_program_for_a_cpu_does_not_grow_with_depth():
    def size(depths):
        config = mm.MedMambaConfig(depths=depths, dims=(8, 16, 32, 64), num_classes=3, d_state=2)
        model = abstract_model(config)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, rest, x):
            return nnx.merge(graphdef, params, rest, copy=True)(x).sum()

        x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        return len(jax.jit(jax.grad(loss)).lower(params, rest, x).as_text())

    assert size((2, 2, 12, 2)) < 1.2 * size((2, 2, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("block", ["ss_conv_ssm", "conv_ssm"])
def test_an_evaluating_model_can_be_closed_over(block):
    model = make(depths=(1,), dims=(8,), block=block)
    model.eval()
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    expected = evaluate(model, images)
    np.testing.assert_allclose(jax.jit(lambda x: model(x))(images), expected, rtol=1e-5, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: model(x).sum()))(images)
    assert gradient.shape == images.shape and float(abs(gradient).max()) > 0


def test_integers_are_refused():
    model = make(depths=(1,), dims=(8,))
    with pytest.raises(ValueError, match="floating and normalised"):
        model(jnp.zeros((1, 8, 8, 3), jnp.uint8))
