"""MedMamba (Yue and Li, arXiv 2403.03849) in JAX and Flax NNX."""

from medmamba_jax.models import VARIANTS, MedMamba, MedMambaConfig
from medmamba_jax.ops.selective_scan import selective_scan
from medmamba_jax.ops.ss2d_scan import ss2d_scan

__all__ = ["VARIANTS", "MedMamba", "MedMambaConfig", "selective_scan", "ss2d_scan"]
