"""Reads and writes the weight files of PyTorch users: .safetensors, .pth and others.

A file is known by its first bytes; its ending only decides what a damaged file was meant to be.
"""

import io
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from medmamba_jax.errors import MissingFileError, MissingPackageError, UserError
from medmamba_jax.files import write_atomically
from medmamba_jax.interop.torch_checkpoints import official_state_dict
from medmamba_jax.interop.torch_names import config_from_state_dict
from medmamba_jax.interop.torch_weights import weights_from_state_dict
from medmamba_jax.models import MedMamba, MedMambaConfig
from medmamba_jax.models.structure import Tensors, abstract_model

SAFETENSORS, TORCH = "safetensors", "torch"
# The formats that files with these endings have, unless their first bytes say something else.
READ = {
    ".safetensors": SAFETENSORS,
    ".pth": TORCH,
    ".pt": TORCH,
    ".ckpt": TORCH,
    ".bin": TORCH,
    ".pth.tar": TORCH,
}
WRITTEN = {ending: READ[ending] for ending in (".safetensors", ".pth", ".pt")}
# Offset in a file, bytes there, what the file then is, and what to do. Case does not matter.
FOREIGN = (
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (0, b"<!DOCTYPE", "a web page: download the file that it links to"),
    (0, b"<html", "a web page: download the file that it links to"),
    (0, b"\x1f\x8b", "compressed by gzip: unpack it"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes them: save the model's state_dict by PyTorch"),
    (257, b"ustar", "a tar archive: unpack it"),
)
_BFLOAT16 = np.dtype(jax.numpy.bfloat16)
_DTYPES = {
    **{"F16": "f2", "F32": "f4", "F64": "f8", "BF16": _BFLOAT16, "BOOL": "?"},
    **{f"{kind}{8 * n}": f"{kind.lower()}{n}" for kind in "IU" for n in (1, 2, 4, 8)},
}


def read_weights(
    path: str | pathlib.Path, **changes: Any
) -> tuple[MedMambaConfig, Tensors, Tensors]:
    """Reads a file of official weights as our architecture, parameters and statistics.

    Args:
      path: a file of safetensors, or one that `torch.save` wrote (needs the `torch` extra), such
        as `.pth`, `.pt`, `.ckpt`, `.bin` and `.pth.tar`. It holds a state_dict, or a checkpoint
        of a training script, see `official_state_dict`.
      **changes: fields of the config that weights do not determine, such as `drop_path_rate` or
        `compute_dtype`.

    Returns:
      The config, and parameters and statistics as nested dictionaries of NumPy arrays. With
      `graphdef = models.evaluation_graphdef(config)`, `nnx.merge(graphdef, params, statistics)` is
      the model.

    Raises:
      FileNotFoundError: the file does not exist.
      ImportError: the file needs PyTorch, which is not installed.
      UserError: the file is unreadable, holds code besides tensors, or does not hold a MedMamba.
    """
    state_dict = read_state_dict(path)
    config = config_from_state_dict(state_dict, **changes)
    return config, *weights_from_state_dict(config, state_dict)


def load_model(path: str | pathlib.Path, **changes: Any) -> tuple[MedMambaConfig, MedMamba]:
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
    """Reads the state_dict of a file, without the wrappers that training scripts add.

    Raises: as `read_weights`.
    """
    path = pathlib.Path(path)
    read = _read_torch if check_readable(path) == TORCH else _read_safetensors
    return official_state_dict(read(path), str(path))


def write_state_dict(state_dict: Mapping[str, np.ndarray], path: str | pathlib.Path) -> None:
    """Writes a state_dict, completely or not at all. The path's ending determines the format.

    Raises:
      OSError: the file cannot be written.
      ImportError: the ending is `.pth` or `.pt`, and PyTorch is not installed.
      UserError: the ending is not one of `.safetensors`, `.pth` and `.pt`.
    """
    path = pathlib.Path(path)
    check_writable(path)
    write_atomically(path, encoded(state_dict, path))


def encoded(
    state_dict: Mapping[str, np.ndarray],
    path: str | pathlib.Path,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Returns the content of a file of weights; see `write_state_dict`.

    Args:
      state_dict: official name -> array.
      path: the file that it is for; its ending determines the format.
      metadata: texts for the header of a `.safetensors` file. Other formats have none.
    """
    path = pathlib.Path(path)
    arrays = {name: np.array(x, order="C") for name, x in state_dict.items()}
    if check_writable(path) == TORCH:
        torch = _import_torch(path)
        file = io.BytesIO()
        torch.save({name: torch.from_numpy(x) for name, x in arrays.items()}, file)
        return file.getvalue()
    return safetensors.numpy.save(arrays, None if metadata is None else dict(metadata))


def read_metadata(path: str | pathlib.Path) -> dict[str, str]:
    """Returns the texts in the header of a file of safetensors; of another file, none.

    Raises: as `read_weights`.
    """
    path = pathlib.Path(path)
    if check_readable(path) == TORCH:
        return {}
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a readable .safetensors file: {error}")


def check_readable(path: str | pathlib.Path) -> str:
    """Checks what can be checked of a file of weights before the rest of it is read.

    Returns:
      The file's format: "safetensors" or "torch".

    Raises:
      FileNotFoundError: the file does not exist.
      ImportError: the file needs PyTorch, which is not installed.
      UserError: the file is not one of weights.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; give one that is")
    file_format = _format(path)
    if file_format == TORCH:
        _import_torch(path)
    return file_format


def check_writable(path: pathlib.Path) -> str:
    """Checks that weights can be written to a path; returns the format, as `check_readable`.

    Raises:
      ImportError: the ending is `.pth` or `.pt`, and PyTorch is not installed.
      UserError: the ending is another one.
    """
    if path.suffix not in WRITTEN:
        raise UserError(f"{path} must end in one of {', '.join(WRITTEN)}")
    if WRITTEN[path.suffix] == TORCH:
        _import_torch(path)
    return WRITTEN[path.suffix]


def _format(path: pathlib.Path) -> str:
    """Returns the format of a file.

    Raises:
      UserError: it is of another kind, which the message names if it is known.
    """
    with path.open("rb") as file:
        start = file.read(512)
    header_size = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header_size <= path.stat().st_size - 8:
        return SAFETENSORS
    if start[:1] == b"\x80":  # a pickle, as PyTorch wrote them before version 1.6
        return TORCH
    if start.startswith(b"PK") and zipfile.is_zipfile(path):  # a tar may end with a zip archive
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any("/code/" in name for name in names):
            raise UserError(f"{path} is a TorchScript program: save model.state_dict() instead")
        if any(name.endswith("/data.pkl") for name in names):
            return TORCH
        raise UserError(f"{path} is a zip archive, but not one of PyTorch's: unpack it")
    for offset, bytes_there, what in FOREIGN:
        if start.lstrip()[offset:].lower().startswith(bytes_there.lower()):
            raise UserError(f"{path} is {what}")
    for ending, file_format in READ.items():
        if path.name.endswith(ending):
            return file_format
    raise UserError(
        f"{path} begins as no file of weights does; such files end in {', '.join(READ)}"
    )


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        content = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise _unreadable(path, error) from error
    arrays = {}
    for name, tensor in content:
        if tensor["dtype"] not in _DTYPES:
            raise UserError(
                f"{path}: {name} is a tensor of {tensor['dtype']}, which no MedMamba has: save the"
                " weights from before they were converted"
            )
        array = np.frombuffer(tensor["data"], np.dtype(_DTYPES[tensor["dtype"]]))
        arrays[name] = array.reshape(tensor["shape"])
    return arrays


def _read_torch(path: pathlib.Path) -> Any:
    torch = _import_torch(path)
    try:
        with path.open("rb") as file:  # of a path, PyTorch reads some endings by other packages
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} is damaged, or holds Python objects besides tensors"
            f"{f' ({named[1]})' if named else ''}, which loading would run as code; save "
            "model.state_dict() alone and load that"
        ) from error
    except (RuntimeError, EOFError, OSError, NotImplementedError) as error:
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
