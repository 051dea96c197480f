"""The step from images in a batch to the input of the model."""

import jax
import jax.numpy as jnp
import numpy as np

from medmamba_jax.data.images.preprocessing import Preprocessing


def normalize(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Computes `(images / 255 - mean) / std`, inside a jitted function.

    Args:
        images: uint8 (b, h, w, c) with the channels of `preprocessing`.
        preprocessing: its `mean` and `std` are on the scale from 0 to 1.

    Returns:
        float32 (b, h, w, c).
    """
    shape = (1, 1, 1, preprocessing.channels)
    mean = jnp.asarray(np.broadcast_to(preprocessing.mean, shape), jnp.float32)
    std = jnp.asarray(np.broadcast_to(preprocessing.std, shape), jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std
