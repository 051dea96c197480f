"""What is fitted on the validation split, and only there: temperature, thresholds and sets."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from medmamba_jax.assessment.prediction_sets import LEVELS, SetThresholds, fit_sets
from medmamba_jax.assessment.thresholds import RULES
from medmamba_jax.errors import UserError
from medmamba_jax.files import write_atomically
from medmamba_jax.metrics import METRICS, Outputs

FILE = "calibration.json"
_AT_BOUND = "temperature_at_bound"  # in the file; it follows from the temperature
_RANGE = (0.05, 20.0)  # of the temperature
# A temperature this close to an end of the range, relative to the end, counts as the end.
_NEAR = 0.01
# Two values of the cross-entropy, in nats, that differ by less count as equal.
_FLAT = 1e-9


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The values that were chosen on a run's validation split, for its best checkpoint.

    Attributes:
        epoch: the epoch of the checkpoint.
        images: how many validation images there were.
        temperature: the logits are divided by it before the softmax or the sigmoid (Guo et al.
            2017, section 4.2).
        thresholds: class -> rule of `RULES` -> the probability from which on an image shows the
            class; None where the validation images have one side only.
        sets: level of `LEVELS`, as text -> what makes the prediction sets of that level. Empty for
            a multi-label set.
    """

    epoch: int
    images: int
    temperature: float
    thresholds: Mapping[str, Mapping[str, float | None]]
    sets: Mapping[str, SetThresholds]

    def to_dict(self) -> dict[str, Any]:
        """Returns nested dictionaries that JSON can hold."""
        return dataclasses.asdict(self) | {_AT_BOUND: is_at_bound(self.temperature)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """Reads what `to_dict` returned, also after a trip through JSON.

        Raises:
            UserError: it is something else.
        """
        try:
            sets = {level: SetThresholds(**value) for level, value in values["sets"].items()}
            kept = {name: value for name, value in values.items() if name != _AT_BOUND}
            found = cls(**{**kept, "sets": sets})
            if not _RANGE[0] / 2 <= found.temperature <= _RANGE[1] * 2:
                raise KeyError("temperature")
            return found
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                "the calibration is damaged, or another version wrote it: evaluate the run again"
            ) from error


def calibrate(outputs: Outputs, epoch: int) -> Calibration:
    """Fits everything on the outputs for the validation split.

    Args:
        outputs: labels and logits of the validation images.
        epoch: the epoch of the checkpoint that made them.
    """
    thresholds = {
        name: {rule: choose(row) for rule, choose in RULES.items()}
        for name, row in outputs.by_class.items()
    }
    sets: dict[str, SetThresholds] = {}
    if outputs.task == "multiclass":
        sets = {str(level): fit_sets(outputs, level) for level in LEVELS}
    temperature = fit_temperature(outputs)
    return Calibration(epoch, len(outputs.labels), temperature, thresholds, sets)


def fit_temperature(outputs: Outputs) -> float:
    """Returns the temperature with the least cross-entropy on these images, in [0.05, 20].

    Of a multi-label set the sum is over the known labels; if there are none, it is 1. The
    cross-entropy is convex in 1 / temperature, so that there is one minimum.
    """
    loss = METRICS["loss"]
    if loss.value(outputs) is None:
        return 1.0  # no label is known

    def at(inverse: float) -> float:
        value = loss.value(dataclasses.replace(outputs, logits=outputs.logits * inverse))
        return np.inf if value is None else value

    low, high = 1 / _RANGE[1], 1 / _RANGE[0]
    found = minimize_scalar(at, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    # The search never returns an end of its range, even where the loss does not rise towards the
    # end. So the ends are compared with what it found.
    at_ends = [end for end in (low, high) if at(end) <= found.fun + _FLAT]
    return float(1 / (at_ends[0] if at_ends else found.x))


def is_at_bound(temperature: float) -> bool:
    """Whether a fitted temperature lies at an end of the range in which it is searched."""
    low, high = _RANGE
    return temperature <= low * (1 + _NEAR) or temperature >= high * (1 - _NEAR)


def doubt_about(temperature: float) -> str:
    """Returns a warning if a fitted temperature lies at an end of the range, else ""."""
    if not is_at_bound(temperature):
        return ""
    return (
        f"The temperature {temperature:.3g} lies at an end of the range in which it is searched"
        f" ({_RANGE[0]:g} to {_RANGE[1]:g}). Do not trust it: the validation images are too few, or"
        " the model separates them perfectly or not at all."
    )


def at_temperature(outputs: Outputs, temperature: float) -> Outputs:
    """Returns the outputs with the logits divided by the temperature."""
    logits = np.asarray(outputs.logits, np.float64) / temperature
    return dataclasses.replace(outputs, logits=logits)


def write_calibration(workdir: pathlib.Path, calibration: Calibration) -> None:
    """Writes `calibration.json` into a run's folder."""
    write_atomically(workdir / FILE, json.dumps(calibration.to_dict(), indent=2) + "\n")


def read_calibration(workdir: pathlib.Path) -> Calibration | None:
    """Reads `calibration.json`; None if the run has none.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: delete it and evaluate the run again") from error
    return Calibration.from_dict(values)
