"""Which implementation of the scan a model will run."""

import jax.numpy as jnp

from medmamba_jax.models.config import MedMambaConfig
from medmamba_jax.ops.scan import Case, choose
from medmamba_jax.ops.scan.implementations import default_backend


def scans(config: MedMambaConfig, height: int, width: int) -> tuple[str, ...]:
    """Returns the implementation's name for each stage, for an image of that size in pixels.

    Raises:
        NotImplementedError: `config.scan_implementation` cannot take a stage, and why.
    """
    return tuple(
        choose(
            config.scan_implementation,
            Case(
                backend=default_backend(),
                dtype=jnp.dtype(config.compute_dtype),
                h=h,
                w=w,
                d=dim,  # half of the channels, twice as wide inside SS2D
                n=config.d_state,
            ),
        )
        for dim, (h, w) in zip(config.dims, config.map_sizes(height, width), strict=True)
    )
