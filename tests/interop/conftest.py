"""A small model of each block, with weights that no two elements share."""

import numpy as np
import pytest
from golden import recipe_model
from official_shapes import official_shapes

import medmamba_jax as mm

SMALL = {"depths": (1, 2), "dims": (8, 16)}


@pytest.fixture(params=["ss_conv_ssm", "conv_ssm"])
def block(request):
    return request.param


@pytest.fixture
def state_dict(block):
    """An official state_dict of the small model, with 5 classes and 3 states."""
    rng = np.random.default_rng(0)
    shapes = official_shapes(**SMALL, classes=5, states=3, first_version=block == "conv_ssm")
    return {
        name: (
            np.array(rng.integers(0, 10**6), np.int64)
            if name.endswith("num_batches_tracked")
            else rng.standard_normal(shape).astype(np.float32)
        )
        for name, shape in shapes.items()
    }


@pytest.fixture
def model(block):
    """A model of the same architecture with other weights."""
    return recipe_model(mm.MedMambaConfig(**SMALL, num_classes=5, d_state=3, block=block), seed=0)
