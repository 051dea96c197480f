"""The package's version. It has its own file, so that a build can read it without JAX."""

__version__ = "0.1.0"
