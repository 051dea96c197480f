"""The scan's implementations that a model will run."""

import jax.numpy as jnp

from medmamba_jax.models.config import MedMambaConfig
from medmamba_jax.ops.backend import default_backend
from medmamba_jax.ops.scan import Case, choose


def scans(config: MedMambaConfig, height: int, width: int) -> tuple[str, ...]:
    """Returns the name of the implementation that each stage will run.

    The name depends only on the stage's `Case`. When the model is traced, it calls `choose` with
    the same cases; a test compares the two.

    Args:
        config: the model's configuration.
        height, width: the image's size in pixels.

    Raises:
        NotImplementedError: `config.scan_implementation` cannot take a stage. The message gives
            the reason.
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
