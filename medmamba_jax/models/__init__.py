"""The model: configuration, layers, the SS2D mixer, both blocks and the whole network."""

from medmamba_jax.models.config import VARIANTS, MedMambaConfig
from medmamba_jax.models.medmamba import MedMamba

__all__ = ["VARIANTS", "MedMamba", "MedMambaConfig"]
