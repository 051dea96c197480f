"""The table of formats: how a file of each is made, and what it computes once it is read."""

import dataclasses
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.exports import onnx, stablehlo
from medmamba_jax.exports.meaning import KEY, Meaning
from medmamba_jax.interop import check_writable, encoded, weights_to_state_dict
from medmamba_jax.predictor import Predictor

Encode = Callable[[Predictor, Meaning, pathlib.Path], bytes]
Run = Callable[[bytes, np.ndarray, Meaning], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of exported files.

    Attributes:
        endings: the endings of its files; the first one is usual.
        encode: returns the content of the file, of a model, its meaning and the path.
        run: returns what the content computes: logits, float32 (n, classes), of images that are
            already resized, uint8 (n, h, w, c).
        json_beside: whether the meaning is a JSON file beside the file, and not in it.
        require: raises ImportError if a package that the format needs is not installed.
    """

    endings: tuple[str, ...]
    encode: Encode
    run: Run
    json_beside: bool
    require: Callable[[pathlib.Path], Any] = lambda path: None


def as_split(images: np.ndarray) -> LabelledImages:
    """Returns images (n, h, w, c) as a split, whose labels mean nothing."""
    return LabelledImages(images, np.zeros(len(images), np.int32))


def _state_dict(predictor: Predictor) -> dict[str, np.ndarray]:
    return weights_to_state_dict(predictor.model, predictor.params, predictor.statistics)


def _run_weights(
    state_dict: Mapping[str, np.ndarray], images: np.ndarray, meaning: Meaning
) -> np.ndarray:
    model = dataclasses.replace(meaning.model, compute_dtype="float32")
    in_float32 = dataclasses.replace(meaning, model=model)
    return in_float32.predictor(state_dict, len(images)).logits(as_split(images))


def _run_safetensors(content: bytes, images: np.ndarray, meaning: Meaning) -> np.ndarray:
    return _run_weights(safetensors.numpy.load(content), images, meaning)


def _run_torch(content: bytes, images: np.ndarray, meaning: Meaning) -> np.ndarray:
    import torch

    tensors = torch.load(io.BytesIO(content), weights_only=True)
    return _run_weights({name: x.numpy() for name, x in tensors.items()}, images, meaning)


# Name -> format. To add one, write `encode` and `run`, and add a row.
FORMATS: dict[str, Format] = {
    "safetensors": Format(
        endings=(".safetensors",),
        encode=lambda predictor, meaning, path: encoded(
            _state_dict(predictor), path, {KEY: meaning.to_json()}
        ),
        run=_run_safetensors,
        json_beside=False,
    ),
    "torch": Format(
        endings=(".pth", ".pt"),
        encode=lambda predictor, meaning, path: encoded(_state_dict(predictor), path),
        run=_run_torch,
        json_beside=True,
        require=check_writable,
    ),
    "stablehlo": Format(
        endings=(".stablehlo",),
        encode=lambda predictor, meaning, path: stablehlo.encode(predictor),
        run=lambda content, images, meaning: stablehlo.run(content, images),
        json_beside=True,
    ),
    "onnx": Format(
        endings=(".onnx",),
        encode=lambda predictor, meaning, path: onnx.encode(predictor, {KEY: meaning.to_json()}),
        run=lambda content, images, meaning: onnx.run(content, images),
        json_beside=False,
        require=lambda path: onnx.require_packages(),
    ),
}
