"""Training: the configuration, the start of a run, the step, the loop."""

from medmamba_jax.training.config import Config
from medmamba_jax.training.loop import fit, train
from medmamba_jax.training.recipes import at_size, default_config, medmnist_config
from medmamba_jax.training.start import TrainingRun, start_run

__all__ = [
    "Config",
    "TrainingRun",
    "at_size",
    "default_config",
    "fit",
    "medmnist_config",
    "start_run",
    "train",
]
