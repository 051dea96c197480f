"""StableHLO by `jax.export`: one program for CPUs, NVIDIA GPUs and TPUs, which needs JAX alone."""

import jax
import jax.export
import numpy as np

from medmamba_jax.exports.program import program
from medmamba_jax.predictor import Predictor

PLATFORMS = ("cpu", "cuda", "tpu")


def encode(predictor: Predictor) -> bytes:
    """Returns the serialised program; its batch may have any size."""
    (batch,) = jax.export.symbolic_shape("batch")
    settings = predictor.preprocessing
    shape = (batch, *settings.image_size, settings.channels)
    run = jax.export.export(jax.jit(program(predictor)), platforms=PLATFORMS)
    # The program would name the source files of this machine, and with them its user.
    frames = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        return bytes(run(jax.ShapeDtypeStruct(shape, np.uint8)).serialize())
    finally:
        jax.config.update("jax_traceback_in_locations_limit", frames)


def run(content: bytes, images: np.ndarray) -> np.ndarray:
    """Returns the logits that a serialised program computes of uint8 images (b, h, w, c)."""
    logits, _ = jax.export.deserialize(bytearray(content)).call(images)
    return np.asarray(logits)
