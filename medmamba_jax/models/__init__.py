"""The model: configuration, layers, the SS2D mixer, both blocks and the whole network."""

from medmamba_jax.models.config import VARIANTS, MedMambaConfig
from medmamba_jax.models.medmamba import MedMamba
from medmamba_jax.models.structure import (
    abstract_model,
    abstract_weights,
    evaluation_graphdef,
    split_model,
    training_graphdef,
)

__all__ = [
    "VARIANTS",
    "MedMamba",
    "MedMambaConfig",
    "abstract_model",
    "abstract_weights",
    "evaluation_graphdef",
    "split_model",
    "training_graphdef",
]
