"""Turns a tensor of PyTorch, of a file or of a caller into a NumPy array, exactly."""

from typing import Any

import numpy as np

from medmamba_jax.errors import UserError

HALVES = ("float16", "bfloat16")  # float32 holds each of their values
FLOATS = (*HALVES, "float32", "float64")


def to_numpy(name: str, tensor: Any) -> np.ndarray:
    """Returns the values of a tensor. float16 and bfloat16 become float32, which is exact.

    Args:
      name: the tensor's name, for messages.
      tensor: a tensor of PyTorch, which may require gradients, or what `np.asarray` takes.

    Raises:
      UserError: the tensor is sparse, quantized, nested or without values, or its numbers are
        neither integers nor in `FLOATS`. The message names the tensor and its kind.
    """
    if hasattr(tensor, "detach"):
        tensor = _values_of_torch(name, tensor)
    array = np.asarray(tensor)
    _check_dtype(name, array.dtype.name)
    return array.astype(np.float32) if array.dtype.name in HALVES else array


def _values_of_torch(name: str, tensor: Any) -> Any:
    layout, dtype = (str(x).removeprefix("torch.") for x in (tensor.layout, tensor.dtype))
    if layout != "strided":
        raise UserError(f"{name} is a {layout} tensor: call to_dense() on it, and save it again")
    if tensor.is_quantized:
        raise UserError(
            f"{name} is a quantized tensor ({dtype}): save the weights from before quantization"
        )
    if tensor.is_nested:
        raise UserError(f"{name} is a nested tensor, and no MedMamba has one")
    if tensor.is_meta:
        raise UserError(f"{name} is on the device 'meta' and has no values: save a loaded model")
    _check_dtype(name, dtype)
    values = tensor.detach().cpu()
    return (values.float() if dtype in HALVES else values).numpy()  # NumPy has no bfloat16


def _check_dtype(name: str, dtype: str) -> None:
    if dtype not in FLOATS and not dtype.startswith(("int", "uint")):
        raise UserError(
            f"{name} is a {dtype} tensor, and weights are one of {', '.join(FLOATS)}: save the"
            " weights from before they were converted"
        )
