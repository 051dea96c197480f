"""Converts weights from and to the official PyTorch layout."""

from medmamba_jax.interop.torch_files import (
    check_readable,
    check_writable,
    encoded,
    load_model,
    read_metadata,
    read_state_dict,
    read_weights,
    write_state_dict,
)
from medmamba_jax.interop.torch_names import config_from_state_dict
from medmamba_jax.interop.torch_weights import (
    load_torch_state_dict,
    to_torch_state_dict,
    weights_from_state_dict,
    weights_to_state_dict,
)

__all__ = [
    "check_readable",
    "check_writable",
    "config_from_state_dict",
    "encoded",
    "load_model",
    "load_torch_state_dict",
    "read_metadata",
    "read_state_dict",
    "read_weights",
    "to_torch_state_dict",
    "weights_from_state_dict",
    "weights_to_state_dict",
    "write_state_dict",
]
