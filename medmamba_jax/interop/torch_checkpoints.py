"""Finds the official state_dict in what a training script has saved.

A model is known by its names, not by where it lies: scripts, Lightning and timm save it under many
keys and behind many prefixes. Of several models in one checkpoint the average over the training
steps (EMA, SWA) is taken, as timm does, because it is what such scripts evaluate.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from medmamba_jax.errors import UserError
from medmamba_jax.interop.torch_names import PATCHES, without_counters_of_tools
from medmamba_jax.interop.torch_tensors import to_numpy

# What PyTorch puts into names where it wraps a module, at any place in them: DataParallel and DDP,
# torch.compile, FSDP, activation checkpointing.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# An official name, behind any prefix.
OFFICIAL = re.compile(
    r"(?:^|\.)(patch_embed\.(?:proj|norm)\.|layers\.\d+\.(?:blocks|downsample)\.|head\.\w+$)"
)
# Words in the place of an average, such as timm's `state_dict_ema`, and in that of weights that an
# average stands beside: `current_model_state` of Lightning, whose `state_dict` then is the average,
# and `online_model` of ema-pytorch.
AVERAGES = {"ema", "swa"}
NOT_AVERAGES = {"current", "online"}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclasses.dataclass(frozen=True)
class _Model:
    """A model in a checkpoint.

    Attributes:
        place: the keys that lead to it, and the prefix of its names, for people.
        tensors: official name -> tensor, not yet converted.
        outside: names of tensors beside it that belong to no MedMamba, such as a loss's weights.
    """

    place: str
    tensors: dict[str, Any]
    outside: tuple[str, ...]

    @property
    def rank(self) -> int:
        """0 for an average, 2 for what stands beside an average, else 1."""
        words = set(re.split(r"[^a-z]+", self.place.lower()))
        return 2 if words & NOT_AVERAGES else 0 if words & AVERAGES else 1


def official_state_dict(content: Any, source: str) -> dict[str, np.ndarray]:
    """Returns the MedMamba in a checkpoint: official name -> array.

    Whatever is taken by a rule, or left out, is logged as a warning.

    Args:
        content: a state_dict, or nested dictionaries that hold one.
        source: where it comes from, for messages.

    Raises:
        UserError: there is no MedMamba in it, there are several of equal right, two tensors have
            one name, or a tensor cannot be converted, see `to_numpy`.
    """
    models = sorted(_models(content, "", source, set()), key=lambda model: model.rank)
    if not models:
        names = list(map(str, content)) if isinstance(content, Mapping) else []
        what = f"its {len(names)} keys such as {names[:3]}" if names else type(content).__name__
        raise UserError(
            f"{source} holds no official MedMamba state_dict: no tensor's name ends in {PATCHES};"
            f" found {what}"
        )
    chosen, others = models[0], models[1:]
    tensors = chosen.tensors
    if others:
        places = [repr(model.place) for model in others]
        if others[0].rank == chosen.rank:
            raise UserError(
                f"{source} holds several models, under {chosen.place!r} and {', '.join(places)}:"
                " save the state_dict of one of them alone"
            )
        logging.warning(
            "%s: takes the average of the weights, under %r, not those under %s; to take these,"
            " save them alone",
            *(source, chosen.place, ", ".join(places)),
        )
        # An average of parameters alone is evaluated with the statistics of the model beside it.
        if len(others) == 1 and not any(name.endswith(BUFFERS) for name in tensors):
            statistics = {k: x for k, x in others[0].tensors.items() if k.endswith(BUFFERS)}
            tensors = tensors | statistics
            logging.warning("%s: the statistics of BatchNorm are those under %s", source, places[0])
    if chosen.outside:
        logging.warning(
            "%s: ignores %d tensors outside the model, such as %s",
            *(source, len(chosen.outside), ", ".join(chosen.outside[:3])),
        )
    tensors = without_counters_of_tools(tensors, source)
    return {name: to_numpy(f"{source}: {name}", tensor) for name, tensor in tensors.items()}


def _models(content: Any, place: str, source: str, seen: set[int]) -> Iterator[_Model]:
    """Yields every model in nested dictionaries."""
    if not isinstance(content, Mapping) or id(content) in seen:  # a pickle may hold itself
        return
    seen.add(id(content))
    yield from _models_by_prefix(content, place, source)
    for key, value in content.items():
        yield from _models(value, f"{place}{key}.", source, seen)


def _models_by_prefix(content: Mapping[Any, Any], place: str, source: str) -> Iterator[_Model]:
    """Yields the models in one dictionary, which have different prefixes."""
    by_prefix: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    rest: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            continue
        name = ".".join(part for part in str(key).split(".") if part not in WRAPPERS)
        found = OFFICIAL.search(name)
        start = found.start(1) if found else 0
        tensors = by_prefix[name[:start]] if found else rest
        if name[start:] in tensors:
            raise UserError(
                f"{source} holds two tensors for {name}, with and without {' or '.join(WRAPPERS)}:"
                " save the state_dict of the model alone"
            )
        tensors[name[start:]] = value
    prefixes = [prefix for prefix, tensors in by_prefix.items() if PATCHES in tensors]
    for prefix in prefixes:
        tensors, outside = dict(by_prefix[prefix]), []
        for other in by_prefix:
            if other in prefixes:
                continue
            if tensors.keys().isdisjoint(by_prefix[other]):  # prefixes are mixed
                tensors |= by_prefix[other]
            else:
                outside += [other + name for name in by_prefix[other]]
        for name, value in rest.items():
            owner = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
            if owner == prefix:
                tensors[name.removeprefix(prefix)] = value
            elif owner is None:
                outside.append(name)
        for name, value in tensors.items():
            if not hasattr(value, "shape"):
                raise UserError(
                    f"{source}: {place}{prefix}{name} is a {type(value).__name__}, not a tensor:"
                    " save model.state_dict() alone"
                )
        yield _Model((place + prefix).removesuffix("."), tensors, tuple(outside))
