"""`medmamba inspect NAME|PATH`, with the augmentation policies of the training step."""

from typing import Any

import numpy as np

from medmamba_jax.data.inspection import command


def add_inspect(subcommands: Any) -> None:
    """Adds `inspect` to the subcommands of a parser."""
    command.add_inspect(subcommands, in_step)


def in_step(policy: str, images: np.ndarray, draw: int) -> np.ndarray:
    """Changes a batch of images as the training step does.

    Args:
        policy: a name in `DEVICE_POLICIES`.
        images: uint8 (b, h, w, c).
        draw: a number; another number gives other random changes.

    Returns:
        uint8 (b, h, w, c).
    """
    import jax  # here, because most inspections need no JAX, and start sooner without it

    from medmamba_jax.training.augmentation import DEVICE_POLICIES

    changed, _ = jax.jit(DEVICE_POLICIES[policy])(jax.random.key(draw), images)
    return np.asarray(changed)
