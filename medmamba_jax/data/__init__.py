"""Images: data sets, preprocessing and batches."""

from medmamba_jax.data.build import build_dataset
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset, DataUnavailableError, InMemorySplit, Split
from medmamba_jax.data.loading import eval_batches, steps_per_epoch, train_batches
from medmamba_jax.data.preprocessing import Preprocessing

__all__ = [
    "DataConfig",
    "DataUnavailableError",
    "Dataset",
    "InMemorySplit",
    "Preprocessing",
    "Split",
    "build_dataset",
    "eval_batches",
    "steps_per_epoch",
    "train_batches",
]
