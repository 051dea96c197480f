"""Training: the experiment, the step, the loop, evaluation."""

from medmamba_jax.train.evaluation import NonFiniteLossError, evaluate
from medmamba_jax.train.experiment import Experiment, default_config
from medmamba_jax.train.loop import train

__all__ = ["Experiment", "NonFiniteLossError", "default_config", "evaluate", "train"]
