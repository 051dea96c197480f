"""One golden file, and the model and images that belong to it."""

import json
import pathlib

import jax
import numpy as np
from flax import nnx
from recipe import recipe_images, recipe_tensor

import medmamba_jax as mm
from medmamba_jax.interop import weights_to_state_dict
from medmamba_jax.models import abstract_model, abstract_weights

_FOLDER = pathlib.Path(__file__).parent


class Golden:
    """The values of `name`.npz.

    Attributes:
      values: the file's arrays by key.
      model: a MedMamba with the recipe's weights, in training mode.
      images: (b, h, w, c).
    """

    def __init__(self, name: str):
        with np.load(_FOLDER / f"{name}.npz") as file:
            self.values = dict(file)
        meta = json.loads(str(self.values.pop("meta")))
        config = mm.MedMambaConfig(
            depths=meta["depths"],
            dims=meta["dims"],
            num_classes=meta["num_classes"],
            in_channels=meta.get("in_chans", 3),
            d_state=meta.get("d_state", 16),
            block=meta.get("block", "ss_conv_ssm"),
            drop_path_rate=0.0,
        )
        self.model = recipe_model(config, meta["seed"])
        self.images = recipe_images(meta["input_shape"], meta["seed"]).transpose(0, 2, 3, 1)

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Returns the values whose key begins with `prefix/`, by the rest of the key."""
        start = prefix + "/"
        return {key[len(start) :]: x for key, x in self.values.items() if key.startswith(start)}


def recipe_weights(config: mm.MedMambaConfig, seed: int) -> dict[str, np.ndarray]:
    """Returns the recipe's weights for this architecture, under their official names."""
    empty = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), abstract_weights(config))
    return {
        name: recipe_tensor(name, x.shape, seed)
        for name, x in weights_to_state_dict(config, *empty).items()
    }


def recipe_model(config: mm.MedMambaConfig, seed: int) -> mm.MedMamba:
    """Returns a model in training mode with the recipe's weights; it compiles nothing to draw."""
    model = abstract_model(config)
    mm.load_torch_state_dict(model, recipe_weights(config, seed))
    model.dropout_rng = nnx.Rngs(0).dropout.fork()
    return model
