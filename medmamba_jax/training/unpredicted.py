"""A warning about classes that the model has stopped, or not begun, to predict."""

import collections
from collections.abc import Mapping
from typing import Any

from medmamba_jax.training.config import TrainConfig

_EPOCHS = 3  # in a row, before the first warning


class UnpredictedClasses:
    """Counts, from validation to validation, for how long no image was taken for a class.

    Args:
        options: what a warning advises depends on what is already in use.
        task: of the data set.
    """

    def __init__(self, options: TrainConfig, task: str):
        self._epochs = collections.Counter[str]()
        self._advice = _advice(options, task)

    def warning(self, per_class: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Returns a line to print, or None.

        A class is named after 3 epochs in a row, and again whenever their number has doubled.

        Args:
            per_class: of the validation split, as `METRICS` return it after each epoch. A class
                that no image shows need not be predicted.
        """
        named = []
        for name, row in per_class.items():
            if row["num_predicted"] or not row["num_examples"]:
                self._epochs[name] = 0
                continue
            self._epochs[name] += 1
            rounds, rest = divmod(self._epochs[name], _EPOCHS)
            if not rest and rounds.bit_count() == 1:
                shown = f"{row['num_examples']} validation images show it"
                named.append(f"{name!r} for {self._epochs[name]} epochs ({shown})")
        if not named:
            return None
        return f"warning: the model has not predicted {', '.join(named)}; {self._advice}"


def _advice(options: TrainConfig, task: str) -> str:
    if task == "multilabel":
        if options.pos_weights == "none":
            return "train.pos_weights='balanced' in a new --workdir may help"
    elif options.class_weights == "none" and options.sampler == "shuffle":
        settings = "train.class_weights='balanced' or train.sampler='balanced'"
        return f"{settings} in a new --workdir may help"
    return "classes are weighted already: look at these images and their labels, or train longer"
