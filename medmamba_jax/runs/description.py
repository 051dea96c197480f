"""`run.json`: what weights alone do not say and evaluation must not guess."""

import dataclasses
import json
import pathlib
from typing import Any

from medmamba_jax.data import Preprocessing
from medmamba_jax.models import MedMambaConfig

FILE = "run.json"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """What a trained model is and what its inputs and outputs mean.

    Attributes:
        experiment: the resolved configuration, as `Experiment.to_dict` writes it.
        model: the architecture.
        preprocessing: how images were prepared.
        class_names: what each logit stands for.
        task: "multiclass", where the softmax of the logits are probabilities, or "multilabel",
            where the sigmoid of each is.
        best_metric: the validation metric that chooses the best checkpoint.
        dataset: name of the images.
        images_sha256: split -> its `digest()`, which tells whether images were added, taken away,
            renamed or split otherwise; of files it sees path and size.
        synthetic: whether a program drew them.
    """

    experiment: dict[str, Any]
    model: MedMambaConfig
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    task: str
    best_metric: str
    dataset: str
    images_sha256: dict[str, str]
    synthetic: bool

    def write(self, workdir: pathlib.Path) -> None:
        """Writes `run.json`, whole or not at all."""
        values = {
            "experiment": self.experiment,
            "model": dataclasses.asdict(self.model),
            "preprocessing": self.preprocessing.to_dict(),
            "class_names": list(self.class_names),
            "task": self.task,
            "best_metric": self.best_metric,
            "dataset": self.dataset,
            "images_sha256": self.images_sha256,
            "synthetic": self.synthetic,
        }
        partial = workdir / (FILE + ".partial")
        partial.write_text(json.dumps(values, indent=2) + "\n")
        partial.replace(workdir / FILE)

    @classmethod
    def read(cls, workdir: pathlib.Path) -> "RunDescription":
        """Reads `run.json`.

        Raises:
            FileNotFoundError: if the folder holds no run.
            ValueError: if another version of this package wrote it.
        """
        path = workdir / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{workdir} holds no run ({FILE} is missing); train first, or give a run's folder"
            )
        values = json.loads(path.read_text())
        missing = {field.name for field in dataclasses.fields(cls)} - values.keys()
        if missing:
            raise ValueError(
                f"{path} lacks {sorted(missing)}: another version of medmamba_jax wrote it; "
                "continue the run with that version, or give a new workdir"
            )
        return cls(
            experiment=values["experiment"],
            model=MedMambaConfig(**values["model"]),
            preprocessing=Preprocessing.from_dict(values["preprocessing"]),
            class_names=tuple(values["class_names"]),
            task=values["task"],
            best_metric=values["best_metric"],
            dataset=values["dataset"],
            images_sha256=values["images_sha256"],
            synthetic=values["synthetic"],
        )
