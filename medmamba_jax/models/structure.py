"""Separates a model's structure from its tensors, for loading weights and for jitted functions.

`nnx.merge` joins them again: it builds a model from a graphdef of this module and the nested
dictionaries of arrays that belong to it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from medmamba_jax.models.config import MedMambaConfig
from medmamba_jax.models.layers import batch_norms
from medmamba_jax.models.medmamba import MedMamba

# Nested dictionaries. A key is the name of an attribute, or the index of a stage.
Tensors = dict[Any, Any]

# The class of an architecture -> the class of its network, which is called as `MedMamba` is and has
# the method `pooled`, too. A script may add a row.
NETWORKS: dict[type, Callable[..., Any]] = {MedMambaConfig: MedMamba}


def new_model(config: MedMambaConfig, rngs: nnx.Rngs) -> MedMamba:
    """Returns a model in training mode with random weights."""
    return NETWORKS[type(config)](config, rngs=rngs)


def abstract_model(config: MedMambaConfig) -> MedMamba:
    """Returns a model in training mode whose tensors are `jax.ShapeDtypeStruct`.

    It does not draw random weights: this takes seconds, and loaded weights would replace them all.
    """
    return nnx.clone(_abstract_model(config))


@functools.lru_cache(maxsize=32)
def _abstract_model(config: MedMambaConfig) -> MedMamba:
    """Returns the model that `abstract_model` copies, because building one takes half a second."""
    return nnx.eval_shape(lambda: new_model(config, nnx.Rngs(0)))


def abstract_weights(config: MedMambaConfig) -> tuple[Tensors, Tensors]:
    """Returns parameters and statistics as `split_model` does, as `jax.ShapeDtypeStruct`."""
    params, statistics, _ = split_model(abstract_model(config))
    return params, statistics


def split_model(model: MedMamba) -> tuple[Tensors, Tensors, Tensors]:
    """Returns a model's tensors as nested dictionaries: parameters, statistics, random stream.

    The parameters are float32. The statistics are those of BatchNorm: float32 means and variances,
    and int32 counters. The random stream is that of dropout and drop path. It is empty if the model
    was built from `evaluation_graphdef`.
    """
    _, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, statistics, random = (nnx.to_pure_dict(state) for state in states)
    return params, statistics, random


def evaluation_graphdef(config: MedMambaConfig) -> nnx.GraphDef[MedMamba]:
    """Returns the structure of a model that only evaluates.

    `nnx.merge(graphdef, params, statistics)` builds the model, inside `jax.jit` too. It is in
    evaluation mode and has no random stream.
    """
    model = abstract_model(config)
    model.eval()
    model.dropout_rng = None
    return nnx.graphdef(model)


def training_graphdef(
    config: MedMambaConfig, frozen: Callable[[str], bool] | None = None
) -> nnx.GraphDef[MedMamba]:
    """Returns the structure of a model in training mode.

    `nnx.merge(graphdef, params, statistics, random)` builds the model.

    Args:
      config: the architecture.
      frozen: whether the BatchNorm at a path, such as "stages.0.blocks.norm1", is frozen. A frozen
        BatchNorm normalises by its running statistics and does not update them. The blocks of a
        stage share one path. By default no BatchNorm is frozen.
    """
    model = abstract_model(config)
    for path, norm in batch_norms(model).items():
        norm.use_running_average = frozen is not None and frozen(path)
    return nnx.graphdef(model)


def name_of(path: tuple[Any, ...]) -> str:
    """Returns the dotted name of a leaf, such as "stages.0.blocks.conv1.kernel".

    Args:
      path: the path of a leaf, from a function such as `jax.tree_util.tree_leaves_with_path`.
    """
    return jax.tree_util.keystr(path, simple=True, separator=".")


def by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their dotted names."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def with_tensors(tree: Any, tensors: Mapping[str, Any]) -> Any:
    """Returns a tree in which `tensors`, by dotted name, replace the leaves of these names."""
    return jax.tree_util.tree_map_with_path(lambda path, x: tensors.get(name_of(path), x), tree)
