"""The weights and images behind the golden values, from a tensor's name, its shape and a seed.

Each tensor has a random stream of its own, so one can be made without the others. What a draw is
turned into depends on what the tensor is for: a weight keeps the signal's size, a norm's scale
stays near 1, and the scan's parameters look like a trained block's.
"""

import zlib

import numpy as np


def _fan_in(shape):
    return np.prod(shape[1:])


def _small_step_bias(rng, shape):
    """Inverse softplus of steps spread evenly on a logarithmic axis from 1e-3 to 1e-1."""
    low, high = np.log(1e-3), np.log(1e-1)
    step = np.exp(low + rng.random(shape) * (high - low))
    return step + np.log(-np.expm1(-step))


# Last part of the official name -> f(normal draw, the stream after it) -> values.
_VALUES = {
    "running_mean": lambda normal, rng: 0.1 * normal,
    "running_var": lambda normal, rng: 0.5 + rng.random(normal.shape),
    "A_logs": lambda normal, rng: np.log(np.arange(1, normal.shape[1] + 1)) + 0.1 * normal,
    "Ds": lambda normal, rng: 1.0 + 0.1 * normal,
    "dt_projs_bias": lambda normal, rng: _small_step_bias(rng, normal.shape),
    "x_proj_weight": lambda normal, rng: normal / np.sqrt(normal.shape[2]),
    "dt_projs_weight": lambda normal, rng: normal / np.sqrt(normal.shape[2]),
    "bias": lambda normal, rng: 0.1 * normal,
    "weight": lambda normal, rng: (
        1.0 + 0.1 * normal if normal.ndim == 1 else normal / np.sqrt(_fan_in(normal.shape))
    ),
}


def recipe_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Returns the tensor of an official name: float32, or an int64 zero for BatchNorm's counter."""
    kind = name.split(".")[-1]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    normal = rng.standard_normal(shape)
    return _VALUES[kind](normal, rng).astype(np.float32)


def recipe_images(shape: tuple[int, int, int, int], seed: int) -> np.ndarray:
    """Returns float32 images (b, c, h, w), about in [-1, 1]: six plane waves and some noise."""
    b, c, h, w = shape
    rng = np.random.default_rng([seed, 7])
    rows = (np.arange(h) / h)[:, None]
    columns = (np.arange(w) / w)[None, :]
    images = np.zeros(shape)
    for _ in range(6):
        cycles = rng.uniform(0.5, 8, (b, c, 2))[..., None, None]
        phase = rng.uniform(0, 2 * np.pi, (b, c))[..., None, None]
        waves = cycles[:, :, 0] * rows + cycles[:, :, 1] * columns
        images += np.sin(2 * np.pi * waves + phase)
    return (images / 3 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
