"""Converts official state_dicts to our parameters and statistics, and back, exactly to the bit."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx

from medmamba_jax.errors import UserError
from medmamba_jax.interop.torch_names import COUNTER, Row, rows, without_counters_of_tools
from medmamba_jax.interop.torch_tensors import FLOATS, to_numpy
from medmamba_jax.models import MedMamba, MedMambaConfig
from medmamba_jax.models.structure import (
    Tensors,
    abstract_weights,
    by_name,
    split_model,
    with_tensors,
)


def weights_from_state_dict(
    config: MedMambaConfig, state_dict: Mapping[str, Any]
) -> tuple[Tensors, Tensors]:
    """Converts an official state_dict to our parameters and statistics.

    Args:
      config: the architecture, see `config_from_state_dict`.
      state_dict: official name -> tensor of PyTorch, or anything that `np.asarray` takes.

    Returns:
      Parameters and statistics, nested as `split_model` nests them, as NumPy arrays.

    Raises:
      UserError: tensors are missing, unexpected or misshapen; the message lists every one.
    """
    params, statistics = abstract_weights(config)
    tensors = _our_tensors(config, state_dict, by_name(params) | by_name(statistics))
    return with_tensors(params, tensors), with_tensors(statistics, tensors)


def weights_to_state_dict(
    config: MedMambaConfig, params: Tensors, statistics: Tensors
) -> dict[str, np.ndarray]:
    """Converts parameters and statistics to an official state_dict.

    It is the inverse of `weights_from_state_dict`.

    Args:
      config: the architecture.
      params: parameters, nested as `split_model` nests them.
      statistics: BatchNorm's statistics, nested in the same way.

    Returns:
      Arrays with official shapes and dtypes, by official name and in official order.
    """
    tensors = by_name(params) | by_name(statistics)
    arrays = {path: np.asarray(tensor) for path, tensor in tensors.items()}
    state_dict = {}
    for row in rows(config):
        array = arrays[row.path] if row.block is None else arrays[row.path][row.block]
        state_dict[row.torch_name] = np.array(row.layout.to_torch(array), order="C")
    return state_dict


def load_torch_state_dict(model: MedMamba, state_dict: Mapping[str, Any]) -> None:
    """Puts the tensors of an official state_dict into `model`, in place.

    Args:
      model: a model of the same architecture, see `config_from_state_dict`.
      state_dict: official name -> tensor of PyTorch, or anything that `np.asarray` takes.

    Raises:
      UserError: tensors are missing, unexpected or misshapen; the message lists every one. The
        model is then unchanged.
    """
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    variables = {".".join(map(str, keys)): variable for keys, variable in state}
    for path, array in _our_tensors(model.config, state_dict, variables).items():
        old = variables[path].get_value()
        # A tensor that is not bound to devices stays unbound. A training step returns all tensors
        # bound, so a model with some bound tensors would compile the step twice.
        sharding = old.sharding if getattr(old, "committed", False) else None
        variables[path].set_value(jax.device_put(array, sharding))


def to_torch_state_dict(model: MedMamba) -> dict[str, np.ndarray]:
    """Returns the model's tensors under official names, shapes and dtypes, in official order."""
    params, statistics, _ = split_model(model)
    return weights_to_state_dict(model.config, params, statistics)


def _our_tensors(
    config: MedMambaConfig, state_dict: Mapping[str, Any], like: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns our tensors by dotted path; `like` gives the shape and dtype of each."""
    table = list(rows(config))
    expected = {row.torch_name: _torch_shape(row, like[row.path]) for row in table}
    state_dict = without_counters_of_tools(state_dict, "the state_dict")
    arrays = {name: to_numpy(name, tensor) for name, tensor in state_dict.items()}
    arrays |= _counters([row.torch_name for row in table if row.layout is COUNTER], arrays)
    _check_names(arrays, expected)
    tensors: dict[str, Any] = {}
    for row in table:
        array = row.layout.from_torch(arrays[row.torch_name]).astype(like[row.path].dtype)
        if row.block is None:
            tensors[row.path] = array
        else:
            tensors.setdefault(row.path, []).append(array)
    return {path: np.stack(x) if isinstance(x, list) else x for path, x in tensors.items()}


def _counters(names: list[str], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns BatchNorm's counters of steps as scalars, name -> int64.

    A counter may be missing, as in old files, or infinite, where a script converted all tensors to
    float16. It becomes 0, since no computation reads it. One that is no single number is left out.
    """
    counters = {}
    unknown = []
    for name in names:
        counter = arrays.get(name)
        if counter is not None and counter.size != 1:
            continue  # misshapen
        value = None if counter is None else counter.item()
        if value is None or not abs(value) < 2**63:  # also NaN
            unknown.append(name)
            value = 0
        counters[name] = np.array(round(value), np.int64)
    if unknown:
        logging.warning(
            "%d counters of BatchNorm's steps are missing or infinite, and become 0, such as %s;"
            " this changes no result",
            *(len(unknown), unknown[0]),
        )
    return counters


def _torch_shape(row: Row, tensor: Any) -> tuple[int, ...]:
    shape = tensor.shape if row.block is None else tensor.shape[1:]
    return row.layout.to_torch(np.empty(shape, np.int8)).shape


def _check_names(arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
    problems = [
        f"missing: {name} {shape}" for name, shape in expected.items() if name not in arrays
    ]
    problems += [
        f"unexpected: {name} {array.shape}"
        for name, array in arrays.items()
        if name not in expected
    ]
    problems += [
        f"misshapen: {name} is {arrays[name].shape}, the model has {shape}"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    problems += [
        f"quantized: {name} is {arrays[name].dtype}, the model has floating-point numbers"
        for name in expected
        if name in arrays
        and name.rpartition(".")[2] != "num_batches_tracked"
        and arrays[name].dtype.name not in FLOATS
    ]
    if problems:
        raise UserError(
            "the state_dict does not fit the model; build it with "
            "medmamba_jax.interop.config_from_state_dict(state_dict), or mend these tensors:\n  "
            + "\n  ".join(problems)
        )
