"""Training: the experiment, the step, the loop, evaluation."""

from medmamba_jax.errors import NonFiniteLossError
from medmamba_jax.training.evaluation import (
    evaluate,
    evaluate_best,
    prepare_evaluation,
)
from medmamba_jax.training.experiment import Experiment
from medmamba_jax.training.loop import fit, prepare_training, train
from medmamba_jax.training.recipes import at_size, default_config, medmnist_config

__all__ = [
    "Experiment",
    "NonFiniteLossError",
    "at_size",
    "default_config",
    "evaluate",
    "evaluate_best",
    "fit",
    "medmnist_config",
    "prepare_evaluation",
    "prepare_training",
    "train",
]
