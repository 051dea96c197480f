"""ONNX by jax2onnx, checked in onnxruntime; both are in the extra `onnx`."""

import logging
import warnings
from types import ModuleType
from typing import Any

import jax
import jax.export
import numpy as np

from medmamba_jax.errors import MissingPackageError
from medmamba_jax.exports.program import INPUT, OUTPUTS, program
from medmamba_jax.ops.convolution import one_form
from medmamba_jax.predictor import Predictor

OPSET = 21  # onnxruntime reads it from version 1.18 on
_ERRORS_ONLY = 3  # of onnxruntime's levels of logging


def require_packages() -> tuple[ModuleType, ModuleType]:
    """Returns jax2onnx and onnxruntime.

    Raises:
        ImportError: one of them is not installed.
    """
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            f'ONNX needs the package {error.name}: pip install "medmamba-jax[onnx]"'
        ) from error
    return jax2onnx, onnxruntime


def encode(predictor: Predictor, metadata: dict[str, str]) -> bytes:
    """Returns the model in ONNX; its batch may have any size.

    Args:
        predictor: the model.
        metadata: texts for the file's `metadata_props`.

    Raises:
        ImportError: jax2onnx or onnxruntime is not installed.
    """
    jax2onnx, _ = require_packages()
    (batch,) = jax.export.symbolic_shape("batch")
    settings = predictor.preprocessing
    shape = (batch, *settings.image_size, settings.channels)
    level = logging.getLogger("onnx_ir").level
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of shapes that it infers later
    try:
        with one_form(), warnings.catch_warnings(action="ignore"):
            model = jax2onnx.to_onnx(
                program(predictor),
                [jax.ShapeDtypeStruct(shape, np.uint8)],
                model_name="medmamba",
                opset=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
            )
    finally:
        logging.getLogger("onnx_ir").setLevel(level)
    _drop_unused(model.graph)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def _drop_unused(graph: Any) -> set[str]:
    """Drops constants that no node reads, each of which onnxruntime would warn of.

    Args:
        graph: an `onnx.GraphProto`, changed in place, with the bodies of its loops.

    Returns:
        The names that the graph and the bodies in it read.
    """
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(node.input)
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for body in bodies:
                read |= _drop_unused(body)
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return read


def run(content: bytes, images: np.ndarray) -> np.ndarray:
    """Returns the logits that onnxruntime computes of uint8 images (b, h, w, c), on the CPU.

    The first image is a batch of its own, so that batches of two sizes are tried.
    """
    _, onnxruntime = require_packages()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    parts = (part for part in (images[:1], images[1:]) if len(part))
    return np.concatenate([session.run([OUTPUTS[0]], {INPUT: part})[0] for part in parts])
