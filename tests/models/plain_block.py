"""The model `tiny`, for tests of everything but the blocks. It compiles in a quarter of the time.

Importing this module adds it to the tables. A process that a test starts does that, too.
"""

from flax import nnx

import medmamba_jax as mm
from medmamba_jax.models.blocks import BLOCKS
from medmamba_jax.models.layers import BatchNorm, drop_path, linear


class PlainBlock(nnx.Module):
    """BatchNorm, a linear layer, SiLU and drop path; the block's input is added."""

    def __init__(self, features, *, dtype, rngs, **ss2d_options):
        self.norm0 = BatchNorm(features, dtype, rngs)
        self.linear = linear(features, features, dtype, rngs, use_bias=False)

    def __call__(self, x, drop_path_rate, key):
        y = nnx.silu(self.linear(self.norm0(x)))
        return x + (y if key is None else drop_path(y, drop_path_rate, key))


BLOCKS["plain"] = PlainBlock
mm.VARIANTS["tiny"] = {"depths": (1, 1), "dims": (8, 16), "block": "plain"}
mm.VARIANTS["tiny_mamba"] = {"depths": (1, 1), "dims": (8, 16)}


def config_file(images: int, epochs: int) -> str:
    """Returns a config file: `tiny` on so many synthetic images, without a report."""
    return f"""
import medmamba_jax as mm
import plain_block  # adds the model `tiny`

def get_config():
    config = mm.default_config()
    config.model.variant = "tiny"
    config.data.name = "phantom"
    config.data.image_size = 32
    config.data.phantom.images = {images}
    config.train.batch_size = 8
    config.train.epochs = {epochs}
    config.results.update(resamples=100, report=False)
    return config
"""
