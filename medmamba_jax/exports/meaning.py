"""The meaning of exported weights: all that a reader needs beside the tensors."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from medmamba_jax.assessment.calibration import Calibration
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.texts import shown_name
from medmamba_jax.errors import UserError
from medmamba_jax.interop import weights_from_state_dict
from medmamba_jax.models import MedMambaConfig
from medmamba_jax.parallel import DataParallel
from medmamba_jax.predictor import Predictor
from medmamba_jax.version import __version__

KEY = "medmamba_jax"  # of the meaning, as JSON, among the metadata of a file
FORMAT = 1  # a version of the package reads this format and all earlier ones
NO_LICENCE = (
    "The licence of the weights is not stated. It depends on the licence of the training images:"
    " ask the person who exported this file. No medical device."
)
_SIGNS_OF_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Training:
    """How a model was trained, as far as a user of the model has to know it.

    Attributes:
        dataset: the name of the training images.
        synthetic: whether a program drew them.
        augmentation: the policy that changed them, a name in `POLICIES`.
        epoch: the epoch of the checkpoint.
    """

    dataset: str
    synthetic: bool
    augmentation: str
    epoch: int


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What an exported file says of itself.

    Attributes:
        model: the architecture.
        preprocessing: how image files become arrays.
        class_names: what each output stands for, in order.
        task: "multiclass" or "multilabel"; see `Predictor`.
        calibration: what was fitted on validation images, or None.
        training: how the model was trained, or None where it is not known.
        licence: under which terms the weights may be used.
        version: the version of this package that wrote the file.
    """

    model: MedMambaConfig
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    task: str
    calibration: Calibration | None
    training: Training | None
    licence: str = NO_LICENCE
    version: str = __version__

    @classmethod
    def of(
        cls, predictor: Predictor, training: Training | None = None, licence: str = NO_LICENCE
    ) -> "Meaning":
        """Returns the meaning of a predictor's weights.

        Settings of the computation stay behind, because they depend on the reader's machine. An
        exported model computes in float32, in which it was checked.
        """
        model = dataclasses.replace(
            predictor.model, compute_dtype="float32", scan_implementation=None, remat=False
        )
        return cls(
            model,
            predictor.preprocessing,
            predictor.class_names,
            predictor.task,
            predictor.calibration,
            training,
            licence,
        )

    def predictor(self, state_dict: Mapping[str, np.ndarray], batch_size: int) -> Predictor:
        """Returns the model with these weights.

        Args:
            state_dict: official name -> array.
            batch_size: the most images in a batch.

        Raises:
            UserError: the weights do not fit the architecture.
        """
        parallel = DataParallel.over_all_devices()
        weights = weights_from_state_dict(self.model, state_dict)
        params, statistics = jax.device_put(weights, parallel.of_state(weights))
        return Predictor(
            model=self.model,
            params=params,
            statistics=statistics,
            preprocessing=self.preprocessing,
            class_names=self.class_names,
            task=self.task,
            batch_size=batch_size,
            parallel=parallel,
            calibration=self.calibration,
        )

    def to_json(self) -> str:
        """Returns the meaning as text in JSON, which `from_json` reads."""
        values = dataclasses.asdict(self) | {"preprocessing": self.preprocessing.to_dict()}
        return json.dumps({"format": FORMAT, **values}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "Meaning":
        """Reads what `to_json` wrote.

        Args:
            text: the JSON.
            source: the file that it is from, for messages.

        Raises:
            UserError: it is damaged, or a later version with another format wrote it.
        """
        written_in = None
        try:
            values: dict[str, Any] = json.loads(text)
            written_in = values.pop("format")
            if written_in > FORMAT:
                raise UserError(
                    f"a later version of medmamba_jax wrote {source} (format {written_in}, and this"
                    f" version reads up to {FORMAT}): install a later version"
                )
            calibration, training = values["calibration"], values["training"]
            return cls(
                **values
                | {
                    "model": MedMambaConfig(**values["model"]),
                    "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
                    "class_names": tuple(map(shown_name, values["class_names"])),
                    "calibration": calibration and Calibration.from_dict(calibration),
                    "training": training and Training(**training),
                }
            )
        except _SIGNS_OF_DAMAGE as error:
            if isinstance(written_in, int) and written_in > FORMAT:
                raise
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}"
            raise UserError(
                f"what {source} says of its model cannot be read ({reason}): export it again"
            ) from error
