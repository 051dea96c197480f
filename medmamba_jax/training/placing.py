"""Decides where the training images live while a run trains, and where they are augmented."""

import dataclasses

from medmamba_jax.data import Dataset, LabelledImages, Preprocessing
from medmamba_jax.data.build import most_to_train
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.images.augmentation import ON_DEVICE
from medmamba_jax.data.reading.cache_places import CACHES, Need
from medmamba_jax.errors import UserError
from medmamba_jax.parallel import DataParallel, as_on_first_host
from medmamba_jax.runs import RunDescription
from medmamba_jax.training.augmentation import DEVICE_POLICIES
from medmamba_jax.training.device_set import device_memory

HOST, DEVICE = "host", "device"  # values of `RunDescription.augmented_on`

_SHARE = 0.25  # of the memory that JAX may use on the devices


def place_training(
    config: DataConfig,
    found: Dataset | LabelledImages,
    preprocessing: Preprocessing,
    parallel: DataParallel,
    before: RunDescription | None,
) -> tuple[bool, str]:
    """Decides where training images live and are augmented.

    The host augments images at their own size, and the device augments resized images. A run that
    is continued augments where it began to augment. The device can also augment images that the
    host keeps and sends.

    Args:
        config: the cache and the augmentation.
        found: what `data.build.find` returned.
        preprocessing: how images are decoded and resized.
        parallel: the devices.
        before: the run that is continued, if any.

    Returns:
        Whether the images live on the devices, and `RunDescription.augmented_on`.

    Raises:
        UserError: the settings ask for images on the device, but they cannot be augmented there,
            or the run has augmented them on the host so far. Or the run has augmented on the
            device, which does not have the policy.
    """
    policy = config.augmentation
    began = "" if before is None or policy == "none" else before.augmented_on or HOST
    if policy not in DEVICE_POLICIES and (config.cache == "device" or began == DEVICE):
        raise UserError(
            f"data.augmentation={policy!r} is none of the policies of the device, which are"
            f" {tuple(DEVICE_POLICIES)}: use one of these, or set data.cache to auto in a new run"
        )
    if config.cache == "device" and began == HOST:
        raise UserError(
            "data.cache='device' would augment images on the device, after they are resized, but"
            " this run has augmented them on the host at their own size: set data.cache to auto, or"
            " give another --workdir"
        )
    able = policy in DEVICE_POLICIES and began != HOST
    need = Need(
        size=most_to_train(found, config) * preprocessing.image_bytes,
        augmented=False,
        num_workers=config.num_workers,
        free={
            "device": able * _SHARE * device_memory(parallel) * len(parallel.devices),
            "memory": 0.0,
            "disk": 0.0,
        },
    )
    (on_device,) = as_on_first_host([CACHES[config.cache](need) == "device"])
    if policy == "none":
        return on_device, ""
    return on_device, began or (DEVICE if on_device or policy in ON_DEVICE else HOST)


def on_host(config: DataConfig, augmented_on: str) -> DataConfig:
    """Returns the settings for reading: if the device augments, the host does not."""
    return dataclasses.replace(config, augmentation="none") if augmented_on == DEVICE else config
