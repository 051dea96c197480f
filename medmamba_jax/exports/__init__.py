"""A trained model as a file for others, with its meaning; and the way back."""

from medmamba_jax.exports.exporting import Exported, check_target, export, files_of
from medmamba_jax.exports.formats import FORMATS
from medmamba_jax.exports.meaning import KEY, NO_LICENCE, Meaning, Training
from medmamba_jax.exports.reading import read_exported

__all__ = [
    "FORMATS",
    "KEY",
    "NO_LICENCE",
    "Exported",
    "Meaning",
    "Training",
    "check_target",
    "export",
    "files_of",
    "read_exported",
]
