"""The configurations that the files in `configs/` start from."""

import dataclasses
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict

from medmamba_jax.errors import UserError
from medmamba_jax.sections import Section
from medmamba_jax.training.config import Config


def default_config() -> ConfigDict:
    """Returns the configuration that every file in `configs/` starts from.

    Its sections and keys are those of `Config`.
    """
    config, fields = Config(), dataclasses.fields(Config)
    return ConfigDict(
        {field.name: _with_types(getattr(config, field.name)) for field in fields},
        # `Config` checks every value; some fields take values of several types.
        type_safe=False,
    )


def _with_types(section: Section) -> dict[str, Any]:
    """Returns a section as a dictionary. It gives each None a type, which flags need."""
    hints = typing.get_type_hints(type(section))
    values: dict[str, Any] = {}
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        value = getattr(section, field.name)
        if isinstance(value, Section):
            value = _with_types(value)
        elif value is None:
            value = config_dict.placeholder(typing.get_args(hints[field.name])[0])
        values[field.name] = value
    return values


def at_size(config: ConfigDict, size: str) -> ConfigDict:
    """Returns the configuration as it is for "full", and shrunk to try it out for "testing".

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
    """Returns the paper's recipe for the sets of MedMNIST, as replications quote it.

    AdamW 1e-3, times 0.1 at epochs 50 and 75, 100 epochs of batches of 128, images resized to
    224 px, no augmentation.

    Args:
        name: name of the public set, such as "breastmnist".
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
