"""The best model of a run, for use from Python."""

import pathlib

import jax
from flax import nnx

from medmamba_jax.models import MedMamba, MedMambaConfig
from medmamba_jax.runs.description import CHECKPOINTS, RunDescription
from medmamba_jax.runs.store import CheckpointStore


def load_best(workdir: str | pathlib.Path) -> tuple[MedMambaConfig, MedMamba]:
    """Builds the model of a run's best checkpoint, in evaluation mode.

    The run may have been trained on any number of devices; the model is on the default one.
    `RunDescription.read(workdir)` tells the class names and the preprocessing.

    Raises:
        FileNotFoundError: if the folder holds no run, or no checkpoint yet.
    """
    workdir = pathlib.Path(workdir).resolve()
    config = RunDescription.read(workdir).model
    graphdef, params, variables = nnx.split(MedMamba(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    like = {
        "params": nnx.to_pure_dict(params),
        "variables": nnx.to_pure_dict(variables),
    }
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.device_put(like, device)
    with CheckpointStore(workdir / CHECKPOINTS) as store:
        epoch = store.best_epoch()
        if epoch is None:
            raise FileNotFoundError(f"{workdir} has no checkpoint yet; train for one epoch first")
        _, trees = store.restore(epoch, like)
    model = nnx.merge(graphdef, trees["params"], trees["variables"])
    model.eval()
    return config, model
