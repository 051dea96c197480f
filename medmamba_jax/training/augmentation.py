"""Augmentation policies of the device: random changes to a batch of images in the training step.

`DEVICE_POLICIES` has the policies of `data.images.augmentation.POLICIES` that the device can do.
"""

from collections.abc import Callable

import jax

# Name -> function (key, uint8 images (b, h, w, c)) -> images of the same shape.
DEVICE_POLICIES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "none": lambda key, images: images,
}
