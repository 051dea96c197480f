"""`train.init_from`: takes the tensors of a trained model that fit the new one."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from absl import logging

from medmamba_jax.data import Preprocessing
from medmamba_jax.errors import UserError
from medmamba_jax.models.structure import by_name
from medmamba_jax.runs import RunDescription, read_trained_weights
from medmamba_jax.training.step import TrainState

HEAD = "head."
PATCHES = "patch_embed.proj.kernel"  # (side, side, channels, features)

LOADED, ADAPTED, DRAWN, UNUSED = "loaded", "adapted", "drawn anew", "unused"


@dataclasses.dataclass(frozen=True)
class Report:
    """The fate of every tensor of the new model and of the trained model.

    Attributes:
        source: the value of `init_from`.
        fates: dotted name -> "loaded", "adapted" (to other input channels), "drawn anew", or
            "unused" (of the trained model).
    """

    source: str
    fates: Mapping[str, str]

    def text(self) -> str:
        """Returns a table: the number of tensors of each part of the model with each fate."""
        counts: dict[tuple[str, str], int] = {}
        for name, fate in self.fates.items():
            parts = name.split(".")
            part = ".".join(parts[:2]) if parts[0] in ("stages", "merges") else parts[0]
            counts[part, fate] = counts.get((part, fate), 0) + 1
        lines = [f"initial weights from {self.source}"]
        lines += [f"  {part:<14}{fate:<12}{n:>4} tensors" for (part, fate), n in counts.items()]
        return "\n".join(lines)


def initial_weights(
    source: str, shapes: TrainState, description: RunDescription
) -> tuple[dict[str, np.ndarray], Report]:
    """Returns the tensors that a new model takes from a trained one, by dotted name.

    A tensor of the same name and shape is loaded. The head is drawn anew where the classes or the
    task differ. If a file does not name its classes, its head is loaded where it has the right
    size, and a warning says that the classes may be other ones. A patch embedding for other input
    channels is adapted: from 3 to 1 by the sum, from 1 to 3 by a third for each, so that a grey
    image gives the same features; for other numbers it is drawn anew.

    Args:
        source: a run's folder, or an official file of weights.
        shapes: the new state.
        description: the new run.

    Raises:
        FileNotFoundError: there is no such run or file.
        ImportError: the file needs PyTorch, which is not installed.
        UserError: anything else differs, and the message lists every tensor; or the file holds no
            MedMamba.
    """
    trained = read_trained_weights(source)
    tensors = by_name(trained.params) | by_name(trained.statistics)
    outputs = (description.task, description.class_names)
    same_outputs = trained.outputs is None or trained.outputs == outputs
    loaded: dict[str, np.ndarray] = {}
    fates: dict[str, str] = {}
    problems = []
    new = by_name(shapes.params) | by_name(shapes.statistics)
    for name, shape in ((name, x.shape) for name, x in new.items()):
        old, fits = tensors.get(name), same_outputs or not name.startswith(HEAD)
        if old is not None and old.shape == shape and fits:
            loaded[name], fates[name] = old, LOADED
        elif name.startswith(HEAD):
            fates[name] = DRAWN
        elif old is None:
            problems.append(f"missing: {name} {shape}")
        elif name == PATCHES and _but_channels(old.shape) == _but_channels(shape):
            adapted = _adapted(old, channels=shape[2])
            fates[name] = DRAWN if adapted is None else ADAPTED
            loaded |= {} if adapted is None else {name: adapted}
        else:
            problems.append(f"misshapen: {name} is {old.shape}, the new model has {shape}")
    for name, old in tensors.items():
        if name not in new and not name.startswith(HEAD):
            problems.append(f"unexpected: {name} {old.shape}")
        elif name not in loaded:
            fates[f"{name} of {source}"] = UNUSED
    if problems:
        raise UserError(
            f"train.init_from={source!r} has another architecture than this run's model; choose the"
            " model.variant, and other settings in model, that it was trained with:\n  "
            + "\n  ".join(problems)
        )
    if trained.outputs is None and HEAD + "kernel" in loaded:
        logging.warning(
            "%s does not name its classes, and has as many as this run, so its head is loaded. If"
            " its classes are not %s, in this order, start from a run or an exported file, which"
            " name their classes",
            source,
            ", ".join(description.class_names),
        )
    _warn_of_other_pixels(trained.preprocessing, description.preprocessing, source)
    return loaded, Report(source, fates)


def _but_channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] + shape[3:]


def _adapted(kernel: np.ndarray, channels: int) -> np.ndarray | None:
    if (kernel.shape[2], channels) == (3, 1):
        return kernel.sum(2, keepdims=True)
    if (kernel.shape[2], channels) == (1, 3):
        return np.repeat(kernel / 3, 3, axis=2)
    return None


def _warn_of_other_pixels(old: Preprocessing | None, new: Preprocessing, source: str) -> None:
    """Warns if the new model gets pixels on another scale than the trained model."""
    if old is None:
        return
    for field in ("mean", "std", "window"):
        before, now = getattr(old, field), getattr(new, field)
        if before != now:
            logging.warning(
                "%s was trained with data.%s = %s, and this run has %s", source, field, before, now
            )
