"""Separates a model's structure from its tensors, for loading weights and for jitted functions.

`nnx.merge` joins them again: it builds a model from a graphdef of this module and the nested
dictionaries of arrays that belong to it.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from flax import nnx

from medmamba_jax.errors import UserError
from medmamba_jax.models.config import VARIANTS, MedMambaConfig
from medmamba_jax.models.layers import batch_norms
from medmamba_jax.models.medmamba import MedMamba

# Nested dictionaries. A key is the name of an attribute, or the index of a stage.
Tensors = dict[Any, Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the pipeline needs to know about a kind of network.

    Attributes:
      config: the class of its settings. It has a method `variant` as `MedMambaConfig` has.
      network: the class of the network. It is called as `MedMamba` is, and has the method `pooled`.
      variants: the names of its variants.
    """

    config: Any
    network: Callable[..., Any]
    variants: Collection[str]


# A script may add a row, as benchmarks/resnet.py does.
ARCHITECTURES = [Architecture(MedMambaConfig, MedMamba, VARIANTS)]


@dataclasses.dataclass(frozen=True, eq=False)
class UnknownArchitecture:
    """The settings of a network that this program does not have.

    Attributes:
      variant: its name in the run that trained it.
      values: its fields.
    """

    variant: str
    values: Mapping[str, Any]


def architecture_of(variant: str) -> Any:
    """Returns the class of a variant's settings, by default `MedMambaConfig`."""
    found = (row.config for row in ARCHITECTURES if variant in row.variants)
    return next(found, MedMambaConfig)


def network_of(config: Any) -> Callable[..., Any]:
    """Returns the class of the network that has these settings.

    Raises:
      UserError: no row of `ARCHITECTURES` has such settings.
    """
    for row in ARCHITECTURES:
        if type(config) is row.config:
            return row.network
    variant = getattr(config, "variant", type(config).__name__)
    raise UserError(
        f"this program does not have the network {variant!r}: use the script that trained it (for"
        " the ResNets: python -m benchmarks.train_resnet --workdir=... --mode=evaluate)"
    )


def new_model(config: MedMambaConfig, rngs: nnx.Rngs) -> MedMamba:
    """Returns a model in training mode with random weights; raises as `network_of`."""
    return network_of(config)(config, rngs=rngs)


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
