"""Structure apart from tensors: nothing is drawn, and any BatchNorm can be frozen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import forbid_drawing
from flax import nnx
from golden import recipe_model

import medmamba_jax as mm
from medmamba_jax.models import (
    abstract_model,
    abstract_weights,
    blocks,
    evaluation_graphdef,
    split_model,
    training_graphdef,
)
from medmamba_jax.models.layers import BatchNorm, batch_norms

CONFIG = mm.MedMambaConfig(
    depths=(2, 1), dims=(8, 16), num_classes=3, d_state=2, drop_path_rate=0.0
)


@functools.cache
def trained():
    """Parameters, statistics and random stream of a model; no two statistics are alike."""
    return split_model(recipe_model(CONFIG, seed=0))


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, images, *tensors):
    """Returns logits and the statistics after them."""
    model = nnx.merge(graphdef, *tensors)
    logits = model(images)
    return logits, split_model(model)[1]


def images():
    return np.random.default_rng(1).standard_normal((3, 16, 12, 3)).astype(np.float32)


def flat(tree):
    """Arrays by dotted path."""
    return {
        ".".join(map(str, path)): np.asarray(x)
        for path, x in nnx.traversals.flatten_mapping(tree).items()
    }


def changed(before, after):
    """Paths of the modules whose statistics differ, and of those whose statistics do not."""
    before, after = flat(before), flat(after)
    assert before.keys() == after.keys()
    modules = {}
    for path, x in before.items():
        same = x.tobytes() == after[path].tobytes()
        modules.setdefault(path.rpartition(".")[0], []).append(same)
    assert all(len(set(same)) == 1 for same in modules.values())
    return (
        {module for module, same in modules.items() if not same[0]},
        {module for module, same in modules.items() if same[0]},
    )


NORMS = {f"stages.{stage}.blocks.norm{i}" for stage in range(2) for i in range(3)}


def test_abstract_weights_have_the_structure_and_shapes_of_a_model():
    params, statistics, _ = trained()
    abstract = abstract_weights(CONFIG)
    for ours, real in zip(abstract, (params, statistics), strict=True):
        assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(ours))
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype.name), ours)
        assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype.name), real)


def test_structure_draws_no_weights(monkeypatch):
    forbid_drawing(monkeypatch)
    with pytest.raises(Exception, match="an initial weight was drawn"):
        jax.block_until_ready(split_model(mm.MedMamba(CONFIG, rngs=nnx.Rngs(0))))
    abstract_model(CONFIG)
    evaluation_graphdef(CONFIG)
    training_graphdef(CONFIG, lambda path: True)


@pytest.mark.slow
def test_evaluation_needs_parameters_and_statistics_alone():
    params, statistics, random = trained()
    # NumPy arrays too, as a file of weights gives them.
    params, statistics = jax.tree.map(np.asarray, (params, statistics))
    logits, after = run(evaluation_graphdef(CONFIG), images(), params, statistics)
    assert changed(statistics, after) == (set(), NORMS)

    model = nnx.merge(training_graphdef(CONFIG), params, statistics, random)
    model.eval()
    np.testing.assert_allclose(logits, model(images()), rtol=1e-5, atol=1e-6)


def test_graphdefs_are_equal_for_equal_configs():
    # `jax.jit` would otherwise compile again.
    again = mm.MedMambaConfig(**vars(CONFIG))
    assert evaluation_graphdef(CONFIG) == evaluation_graphdef(again)
    assert hash(evaluation_graphdef(CONFIG)) == hash(evaluation_graphdef(again))
    assert training_graphdef(CONFIG) == training_graphdef(again)
    assert training_graphdef(CONFIG) != training_graphdef(CONFIG, lambda path: "norm0" in path)


def test_training_updates_every_batch_norm_unless_some_are_frozen():
    tensors = trained()
    _, after = run(training_graphdef(CONFIG), images(), *tensors)
    assert changed(tensors[1], after) == (NORMS, set())


@pytest.mark.parametrize(
    "frozen",
    [
        {"stages.0.blocks.norm1"},
        {"stages.0.blocks.norm0", "stages.0.blocks.norm2", "stages.1.blocks.norm1"},
        NORMS - {"stages.1.blocks.norm2"},
        NORMS,
    ],
    ids=["one", "some", "all_but_one", "all"],
)
def test_frozen_batch_norms_keep_their_statistics_and_the_others_do_not(frozen):
    tensors = trained()
    _, after = run(training_graphdef(CONFIG, frozen.__contains__), images(), *tensors)
    assert changed(tensors[1], after) == (NORMS - frozen, frozen)


def test_with_every_batch_norm_frozen_training_computes_what_evaluation_does():
    params, statistics, random = trained()
    graphdef = training_graphdef(CONFIG, lambda path: True)
    logits, _ = run(graphdef, images(), params, statistics, random)
    expected, _ = run(evaluation_graphdef(CONFIG), images(), params, statistics)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)


def test_a_frozen_batch_norm_normalises_as_in_evaluation():
    params, statistics, random = trained()
    path = "stages.0.blocks.norm0"
    model = nnx.merge(training_graphdef(CONFIG, path.__eq__), params, statistics, random)
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    norms = batch_norms(model)
    # Each norm holds the tensors of all blocks of its stage; the first block's will do.
    frozen = {name: value[0] for name, value in statistics["stages"][0]["blocks"]["norm0"].items()}
    affine = {name: value[0] for name, value in params["stages"][0]["blocks"]["norm0"].items()}
    first = nnx.merge(nnx.graphdef(norms[path]), frozen, affine)
    scale = np.sqrt(np.float64(frozen["var"]) + 1e-5)
    expected = (x - np.float64(frozen["mean"])) / scale * affine["scale"] + affine["bias"]
    np.testing.assert_allclose(first(x), expected, rtol=1e-5, atol=1e-5)
    assert [name for name, norm in norms.items() if norm.use_running_average] == [path]


class OneNorm(nnx.Module):
    """A block of one's own, whose only BatchNorm has a name of its own."""

    def __init__(self, features, *, dtype, rngs, **ss2d_options):
        self.normalise = BatchNorm(features, dtype, rngs)

    def __call__(self, x, drop_path_rate, key):
        return x + self.normalise(x)


class NoNorm(nnx.Module):
    def __init__(self, features, *, dtype, rngs, **ss2d_options):
        self.scale = nnx.Param(jnp.ones(features))

    def __call__(self, x, drop_path_rate, key):
        return x + self.scale * x


def test_blocks_of_ones_own_may_name_their_batch_norms_or_have_none(monkeypatch):
    monkeypatch.setitem(blocks.BLOCKS, "one_norm", OneNorm)
    monkeypatch.setitem(blocks.BLOCKS, "no_norm", NoNorm)
    shape = {"depths": (2,), "dims": (8,), "num_classes": 2}
    for block, norms in (("one_norm", {"stages.0.blocks.normalise"}), ("no_norm", set())):
        config = mm.MedMambaConfig(**shape, block=block)
        tensors = split_model(mm.MedMamba(config, rngs=nnx.Rngs(0)))
        _, after = run(training_graphdef(config), images(), *tensors)
        assert changed(tensors[1], after) == (norms, set())
        logits, after = run(evaluation_graphdef(config), images(), *tensors[:2])
        assert changed(tensors[1], after) == (set(), norms)
        assert logits.shape == (3, 2)
