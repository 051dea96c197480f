"""How far two arrays are apart, relative to the largest element."""

import numpy as np


def relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)


def assert_close(actual, expected, tolerance, name):
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{name}: relative error {error:.2e} over {tolerance:.2e}"
