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
    return bytes(run(jax.ShapeDtypeStruct(shape, np.uint8)).serialize())


def run(content: bytes, images: np.ndarray) -> np.ndarray:
    """Returns the logits that a serialised program computes of uint8 images (b, h, w, c)."""
    logits, _ = jax.export.deserialize(bytearray(content)).call(images)
    return np.asarray(logits)
