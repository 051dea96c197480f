"""Several finished runs in one view: seeds, folds, and models on the same images."""

from medmamba_jax.runs.summaries.models import require_one_model
from medmamba_jax.runs.summaries.summary import summarize
from medmamba_jax.runs.summaries.tables import summary_text

__all__ = ["require_one_model", "summarize", "summary_text"]
