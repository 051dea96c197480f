"""Reads and writes the weight files of PyTorch users: .safetensors, .pth and .pt."""

import io
import pathlib
import pickle
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from medmamba_jax.errors import MissingPackageError, UserError
from medmamba_jax.files import write_atomically
from medmamba_jax.interop.torch_names import config_from_state_dict
from medmamba_jax.interop.torch_weights import weights_from_state_dict
from medmamba_jax.models import MedMamba, MedMambaConfig
from medmamba_jax.models.structure import Tensors, abstract_model

# Keys under which training scripts save a state_dict.
WRAPPERS = ("state_dict", "model_state_dict", "model")
PARALLEL_PREFIX = "module."  # torch.nn.DataParallel and DistributedDataParallel
TORCH_SUFFIXES = (".pth", ".pt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


def read_weights(
    path: str | pathlib.Path, **changes: Any
) -> tuple[MedMambaConfig, Tensors, Tensors]:
    """Reads a file of official weights as our architecture, parameters and statistics.

    Args:
      path: a `.safetensors` file, or a `.pth` or `.pt` file (needs the `torch` extra).
      **changes: fields of the config that weights do not determine, such as `drop_path_rate` or
        `compute_dtype`.

    Returns:
      The config, and parameters and statistics as nested dictionaries of NumPy arrays. With
      `graphdef = models.evaluation_graphdef(config)`, `nnx.merge(graphdef, params, statistics)` is
      the model.

    Raises:
      FileNotFoundError: the file does not exist.
      ImportError: the file is a `.pth` or `.pt` file, and PyTorch is not installed.
      UserError: the file is unreadable, holds code besides tensors, or does not hold a MedMamba.
    """
    state_dict = read_state_dict(path)
    config = config_from_state_dict(state_dict, **changes)
    return config, *weights_from_state_dict(config, state_dict)


def load_torch(path: str | pathlib.Path, **changes: Any) -> tuple[MedMambaConfig, MedMamba]:
    """Builds a model with the architecture and the weights of a file of official weights.

    Args:
      path: as for `read_weights`.
      **changes: as for `read_weights`.

    Returns:
      The config and the model, in evaluation mode.

    Raises: as `read_weights`.
    """
    config, params, statistics = read_weights(path, **changes)
    model = abstract_model(config)
    nnx.update(model, jax.device_put(params), jax.device_put(statistics))
    model.dropout_rng = nnx.Rngs(0).dropout.fork()  # the only tensors that are not in the file
    model.eval()
    return config, model


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the state_dict of a file. It removes the wrappers that training scripts add.

    Raises: as `read_weights`.
    """
    path = pathlib.Path(path)
    check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give one that is")
    content = _read_torch(path) if path.suffix in TORCH_SUFFIXES else _read_safetensors(path)
    return _unwrap(content, path)


def write_state_dict(state_dict: Mapping[str, np.ndarray], path: str | pathlib.Path) -> None:
    """Writes a state_dict, completely or not at all. The path's ending determines the format.

    Raises:
      OSError: the file cannot be written.
      ImportError: the ending is `.pth` or `.pt`, and PyTorch is not installed.
      UserError: the ending is not one of `.safetensors`, `.pth` and `.pt`.
    """
    path = pathlib.Path(path)
    check_suffix(path)
    arrays = {name: np.array(x, order="C") for name, x in state_dict.items()}
    if path.suffix in TORCH_SUFFIXES:
        torch = _import_torch(path)
        file = io.BytesIO()
        torch.save({name: torch.from_numpy(x) for name, x in arrays.items()}, file)
        content = file.getvalue()
    else:
        content = safetensors.numpy.save(arrays)
    write_atomically(path, content)


def check_suffix(path: pathlib.Path) -> None:
    """Raises UserError unless the path's ending is that of a weight file."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} must end in one of {', '.join(SUFFIXES)}")


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a readable .safetensors file: {error}") from error


def _read_torch(path: pathlib.Path) -> Any:
    torch = _import_torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds Python objects besides tensors, which loading would run "
            "as code; save model.state_dict() alone and load that"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a readable PyTorch file: {error}") from error


def _import_torch(path: pathlib.Path) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            f"{path} needs PyTorch: pip install torch, or save the weights as "
            ".safetensors, which needs nothing more"
        ) from error
    return torch


def _unwrap(content: Any, path: pathlib.Path) -> dict[str, np.ndarray]:
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no state_dict, nor one under {', '.join(WRAPPERS)}")
    state_dict = {}
    for name, tensor in content.items():
        if not hasattr(tensor, "shape"):
            raise UserError(
                f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor; "
                f"wrappers known are {', '.join(WRAPPERS)}"
            )
        state_dict[str(name).removeprefix(PARALLEL_PREFIX)] = _to_numpy(tensor)
    return state_dict


def _to_numpy(tensor: Any) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor
    # Convert bfloat16 and float16: NumPy has no bfloat16, and our parameters are float32.
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
