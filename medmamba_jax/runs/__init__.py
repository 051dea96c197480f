"""A run's folder: its description, its checkpoints, and the trained model in it."""

from medmamba_jax.runs.description import RunDescription
from medmamba_jax.runs.run import Run, TrainedWeights, load_run, read_trained_weights
from medmamba_jax.runs.sources import (
    SOURCES_OF_MODELS,
    Trained,
    load_predictor,
    load_trained,
)
from medmamba_jax.runs.store import Checkpoints, CheckpointStore, Position, Progress

__all__ = [
    "SOURCES_OF_MODELS",
    "CheckpointStore",
    "Checkpoints",
    "Position",
    "Progress",
    "Run",
    "RunDescription",
    "Trained",
    "TrainedWeights",
    "load_predictor",
    "load_run",
    "load_trained",
    "read_trained_weights",
]
