"""What a run leaves behind: its description and its checkpoints, written and read back."""

from medmamba_jax.runs.description import RunDescription
from medmamba_jax.runs.load import load_best
from medmamba_jax.runs.store import CheckpointStore, Progress

__all__ = ["CheckpointStore", "Progress", "RunDescription", "load_best"]
