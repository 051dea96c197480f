"""Loading and writing official state_dicts, as NumPy arrays: strict, and bit-exact both ways."""

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from medmamba_jax.interop.torch_names import rows
from medmamba_jax.models import MedMamba


def load_torch_state_dict(model: MedMamba, state_dict: Mapping[str, np.ndarray]) -> None:
    """Puts the tensors of an official state_dict into `model`, in place.

    Args:
      model: a model of the same architecture, see `MedMambaConfig.from_torch_state_dict`; one of
        `nnx.eval_shape` will do.
      state_dict: official names to arrays; anything that `np.asarray` takes.

    Raises:
      ValueError: keys are missing, unexpected or misshapen; the message lists every one. The
        model is then unchanged.
    """
    variables = _variables(model)
    table = list(rows(model.config))
    expected = {row.torch_name: _torch_shape(row, variables[row.path]) for row in table}
    _check_keys({key: np.shape(value) for key, value in state_dict.items()}, expected)

    blocks: dict[str, list[np.ndarray]] = {}
    for row in table:
        array = row.layout.from_torch(np.asarray(state_dict[row.torch_name]))
        blocks.setdefault(row.path, []).append(array)
    stacked = {row.path: row.block is not None for row in table}
    for path, arrays in blocks.items():
        array = np.stack(arrays) if stacked[path] else arrays[0]
        variable = variables[path]
        old = variable.get_value()
        # Only what was bound to devices is bound again: a model half bound and half not would be
        # compiled once as it is and once more as its first training step returns it, all bound.
        sharding = old.sharding if getattr(old, "committed", False) else None
        variable.set_value(jax.device_put(array.astype(old.dtype), sharding))


def to_torch_state_dict(model: MedMamba) -> dict[str, np.ndarray]:
    """Returns the model's tensors under official names, shapes and dtypes, in official order."""
    arrays = {path: np.asarray(v[...]) for path, v in _variables(model).items()}
    state_dict = {}
    for row in rows(model.config):
        array = arrays[row.path] if row.block is None else arrays[row.path][row.block]
        state_dict[row.torch_name] = np.array(row.layout.to_torch(array), order="C")
    return state_dict


def _variables(model: MedMamba) -> dict[str, nnx.Variable]:
    """Parameters and BatchNorm statistics by dotted path."""
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    return {".".join(map(str, path)): v for path, v in nnx.to_flat_state(state)}


def _torch_shape(row, variable):
    shape = variable.shape if row.block is None else variable.shape[1:]
    return row.layout.to_torch(np.empty(shape, np.int8)).shape


def _check_keys(actual, expected):
    problems = [f"missing: {key} {shape}" for key, shape in expected.items() if key not in actual]
    problems += [
        f"unexpected: {key} {shape}" for key, shape in actual.items() if key not in expected
    ]
    problems += [
        f"misshapen: {key} is {actual[key]}, the model has {shape}"
        for key, shape in expected.items()
        if key in actual and actual[key] != shape
    ]
    if problems:
        raise ValueError(
            "the state_dict does not fit the model; build it with "
            "MedMambaConfig.from_torch_state_dict(state_dict), or mend these keys:\n  "
            + "\n  ".join(problems)
        )
