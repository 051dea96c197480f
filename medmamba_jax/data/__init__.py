"""Images: data sets, preprocessing and batches."""

from medmamba_jax.data.auditing.auditing import audit
from medmamba_jax.data.build import build_dataset
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset, InMemorySplit, Split
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.own_data import OwnData, as_dataset
from medmamba_jax.data.reading.loading import eval_batches, steps_per_epoch, train_batches
from medmamba_jax.data.splits.split_table import write_split_table

__all__ = [
    "DataConfig",
    "Dataset",
    "InMemorySplit",
    "OwnData",
    "Preprocessing",
    "Split",
    "as_dataset",
    "audit",
    "build_dataset",
    "eval_batches",
    "steps_per_epoch",
    "train_batches",
    "write_split_table",
]
