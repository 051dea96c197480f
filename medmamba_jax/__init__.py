"""MedMamba (Yue and Li, arXiv 2403.03849) in JAX and Flax NNX."""

from medmamba_jax.checkpoints import load_best
from medmamba_jax.data import Dataset, InMemorySplit
from medmamba_jax.interop import load_torch, load_torch_state_dict, to_torch_state_dict
from medmamba_jax.models import VARIANTS, MedMamba, MedMambaConfig
from medmamba_jax.ops.selective_scan import selective_scan
from medmamba_jax.ops.ss2d_scan import ss2d_scan
from medmamba_jax.train import (
    Experiment,
    at_size,
    default_config,
    evaluate,
    medmnist_config,
    train,
)
from medmamba_jax.version import __version__

__all__ = [
    "VARIANTS",
    "Dataset",
    "Experiment",
    "InMemorySplit",
    "MedMamba",
    "MedMambaConfig",
    "__version__",
    "at_size",
    "default_config",
    "evaluate",
    "load_best",
    "load_torch",
    "load_torch_state_dict",
    "medmnist_config",
    "selective_scan",
    "ss2d_scan",
    "to_torch_state_dict",
    "train",
]
