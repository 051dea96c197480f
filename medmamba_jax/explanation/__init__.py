"""Heat maps of what a trained model's outputs depend on, and pictures of its features."""

from medmamba_jax.explanation.maps import Explanation, explain
from medmamba_jax.explanation.methods import METHODS, Method, Network

__all__ = ["METHODS", "Explanation", "Method", "Network", "explain"]
