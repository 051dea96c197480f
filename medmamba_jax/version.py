"""The package's version, on its own so that a build reads it without importing JAX."""

__version__ = "0.1.0"
