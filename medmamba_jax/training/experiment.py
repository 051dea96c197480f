"""A whole experiment: model, data and training, from and to `ml_collections` and JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from medmamba_jax.data import DataConfig
from medmamba_jax.models import MedMambaConfig
from medmamba_jax.training.config import TrainConfig

# Set by the variant and by the data; the rest of MedMambaConfig is the `model` section.
_NOT_OPTIONS = ("depths", "dims", "block", "num_classes")
MODEL_OPTIONS = {
    field.name: field.default
    for field in dataclasses.fields(MedMambaConfig)
    if field.name not in _NOT_OPTIONS
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides a run.

    Attributes:
        model: `variant`, a name in `VARIANTS`, and any of `MODEL_OPTIONS`.
        data: where the images come from.
        train: how the model is trained.

    Raises:
        ValueError: if a section holds a key or a value that is not allowed.
    """

    model: Mapping[str, Any]
    data: DataConfig
    train: TrainConfig

    def __post_init__(self):
        unknown = set(self.model) - {"variant", *MODEL_OPTIONS}
        if unknown or "variant" not in self.model:
            raise ValueError(
                f"model must have the key variant and may have {sorted(MODEL_OPTIONS)}; "
                f"got {sorted(self.model)}"
            )
        self.model_config(num_classes=2)

    def model_config(self, num_classes: int) -> MedMambaConfig:
        """Returns the model's architecture for this many classes."""
        options = {key: value for key, value in self.model.items() if key != "variant"}
        try:
            return MedMambaConfig.variant(self.model["variant"], num_classes=num_classes, **options)
        except ValueError as error:
            raise ValueError(f"model.{error}") from error

    @classmethod
    def from_config_dict(cls, config: ConfigDict) -> "Experiment":
        """Reads what a config file returned; `recipes.default_config` shows the keys.

        Raises:
            ValueError: if it is nothing of the kind, or as `from_dict`.
        """
        if not isinstance(config, ConfigDict):
            raise ValueError(
                f"a config is a ConfigDict, such as medmamba_jax.default_config() returns; got a"
                f" {type(config).__name__}"
            )
        return cls.from_dict(config.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> "Experiment":
        """Reads what `to_dict` returned, also after a trip through JSON.

        Raises:
            ValueError: if a section or key is missing or unknown, or a value is not allowed.
        """
        sections = {"data": DataConfig, "train": TrainConfig}
        if set(values) != {"model", *sections}:
            raise ValueError(
                f"a config has the sections model, data and train; got {sorted(values)}"
            )
        built = {}
        for name, section in sections.items():
            known = {field.name for field in dataclasses.fields(section)}
            wrong = sorted(known ^ set(values[name]))
            if wrong:
                problem = "lacks" if wrong[0] in known else "has no"
                raise ValueError(f"{name} {problem} key {wrong[0]!r}; it has {sorted(known)}")
            from_dict = getattr(section, "from_dict", None)
            built[name] = from_dict(values[name]) if from_dict else section(**values[name])
        return cls(model=dict(values["model"]), **built)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns nested dictionaries that JSON can hold."""
        return {
            "model": dict(self.model),
            "data": dataclasses.asdict(self.data),
            "train": dataclasses.asdict(self.train),
        }
