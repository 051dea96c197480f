"""Settings for the tests of whole models."""

import jax
import pytest


@pytest.fixture(scope="module")
def exact_products():
    """Matrix products in full float32, whatever the device."""
    with jax.default_matmul_precision("highest"):
        yield
