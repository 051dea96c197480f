"""MedMamba (Yue and Li, arXiv 2403.03849) in JAX and Flax NNX.

`__init__.pyi` lists the public names. Python imports each of them at its first use, so that worker
processes, which only read images, start without JAX.
"""

import lazy_loader

from medmamba_jax.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
