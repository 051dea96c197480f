"""The whole way from uint8 images to probabilities as one function, for formats that hold programs.

Settings that only a reader of Python could follow, such as kernels, are left out of it.
"""

import dataclasses
from collections.abc import Callable

import jax

from medmamba_jax.models import evaluation_graphdef
from medmamba_jax.predictor import Predictor, forward

INPUT = "images"
OUTPUTS = ("logits", "probabilities")
_SCAN = "unrolled"  # plain JAX, on all platforms


def program(predictor: Predictor) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns a function of images, which closes over the weights.

    It takes uint8 (b, h, w, c), images that are already resized, and returns logits and
    probabilities, both float32 (b, classes). It normalises the images, and computes in float32.
    """
    model = dataclasses.replace(
        predictor.model, compute_dtype="float32", scan_implementation=_SCAN, remat=False
    )
    graphdef = evaluation_graphdef(model)
    params, statistics = jax.device_get((predictor.params, predictor.statistics))

    def run(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = forward(
            params,
            statistics,
            images,
            what="logits",
            graphdef=graphdef,
            preprocessing=predictor.preprocessing,
        )
        if predictor.task == "multilabel":
            return logits, jax.nn.sigmoid(logits)
        return logits, jax.nn.softmax(logits)

    return run
