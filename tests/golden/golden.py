"""One golden file, and the model and images that belong to it."""

import json
import pathlib

import numpy as np
from flax import nnx
from recipe import recipe_images, recipe_tensor

import medmamba_jax as mm

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
        self.model = mm.MedMamba(config, rngs=nnx.Rngs(0))
        load_recipe(self.model, meta["seed"])
        self.images = recipe_images(meta["input_shape"], meta["seed"]).transpose(0, 2, 3, 1)

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Returns the values whose key begins with `prefix/`, by the rest of the key."""
        start = prefix + "/"
        return {key[len(start) :]: x for key, x in self.values.items() if key.startswith(start)}


def load_recipe(model: mm.MedMamba, seed: int) -> dict[str, np.ndarray]:
    """Loads the recipe's weights into `model` and returns them under their official names."""
    weights = {
        name: recipe_tensor(name, old.shape, seed)
        for name, old in mm.to_torch_state_dict(model).items()
    }
    mm.load_torch_state_dict(model, weights)
    return weights
