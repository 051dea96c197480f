"""The configurations that the files in `configs/` start from."""

import dataclasses

from ml_collections import ConfigDict, config_dict

from medmamba_jax.data import DataConfig
from medmamba_jax.errors import UserError
from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.experiment import MODEL_OPTIONS


def default_config() -> ConfigDict:
    """Returns the configuration that every file in `configs/` starts from.

    Its keys are those of `DataConfig`, `TrainConfig` and, under `model`, `variant` and
    `MODEL_OPTIONS`.
    """
    model = {"variant": "medmamba_t", **MODEL_OPTIONS}
    model["scan_implementation"] = config_dict.placeholder(str)
    return ConfigDict(
        {
            "model": model,
            "data": DataConfig().to_dict(),
            "train": dataclasses.asdict(TrainConfig()),
        }
    )


def at_size(config: ConfigDict, size: str) -> ConfigDict:
    """Returns the configuration unchanged for "full", and made small for "testing", to try it out.

    Raises:
        UserError: the size is another.
    """
    if size == "testing":
        config.model.variant = "medmamba_nano"
        config.data.image_size = 32
        config.train.epochs = 2
        config.train.batch_size = 8
    elif size != "full":
        raise UserError(f"sizes are full and testing; got {size!r}")
    return config


def medmnist_config(name: str, size: str) -> ConfigDict:
    """Returns the paper's recipe for the sets of MedMNIST, as replications report it.

    AdamW 1e-3, times 0.1 at epochs 50 and 75, 100 epochs of batches of 128, images resized to
    224 px, no augmentation.

    Args:
        name: of the public set, such as "breastmnist".
        size: as in `at_size`.

    Raises:
        UserError: as `at_size`.
    """
    config = default_config()
    config.data.name = name
    config.data.allow_overlap = True  # MedMNIST's own splits are used unchanged
    config.train.lr = 1e-3
    config.train.schedule = "step"
    config.train.step_epochs = (50, 75)
    config.train.epochs = 100
    config.train.batch_size = 128
    return at_size(config, size)
