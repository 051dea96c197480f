"""`run.json`: the facts that later uses of a run need, and that its weights do not contain."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from medmamba_jax.data import Preprocessing
from medmamba_jax.data.texts import shown_name
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.files import write_atomically
from medmamba_jax.models import MedMambaConfig
from medmamba_jax.models.structure import UnknownArchitecture, architecture_of
from medmamba_jax.parallel import DataParallel
from medmamba_jax.predictor import Predictor

FILE = "run.json"
_SIGNS_OF_DAMAGE = (
    *(UnicodeDecodeError, json.JSONDecodeError, RecursionError),
    *(KeyError, TypeError, AttributeError),
)
HOST, DEVICE = "host", "device"  # where images are augmented
CONTENT_FORMAT = 3  # from which on `images_sha256` tells the content of images
FORMAT = 3  # a version of the package reads this format and all earlier ones


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """The architecture of a trained model, and the meaning of its inputs and outputs.

    Attributes:
        config: the run's configuration, as `Config.to_dict` returns it.
        model: the architecture; `UnknownArchitecture` if this program has no such network.
        preprocessing: how image files become arrays.
        class_names: the class of each logit.
        task: "multiclass", where the softmax of the logits gives probabilities, or "multilabel",
            where the sigmoid of each does.
        best_metric: the validation metric that chooses the best checkpoint.
        dataset: name of the images.
        split: how the images were split, in a few words; empty if an earlier version wrote it.
        images_sha256: split -> its `digest()`. It changes when images are added, removed, changed
            or split in another way.
        synthetic: whether a program drew the images.
        averaged: whether the evaluated parameters are the moving averages (`train.ema_decay`).
        augmented_on: where the training images are augmented: "host", at their own size, or
            "device", resized, in the training step. Empty if they are not augmented.
        format: the format of the file that this was read from.
    """

    config: dict[str, Any]
    model: MedMambaConfig
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    task: str
    best_metric: str
    dataset: str
    images_sha256: dict[str, str]
    synthetic: bool
    averaged: bool = False
    split: str = ""
    augmented_on: str = ""
    format: int = FORMAT

    def predictor(
        self, params: Any, statistics: Any, batch_size: int, parallel: DataParallel
    ) -> Predictor:
        """Returns the model that this describes, with these weights."""
        return Predictor(
            model=self.model,
            params=params,
            statistics=statistics,
            preprocessing=self.preprocessing,
            class_names=self.class_names,
            task=self.task,
            batch_size=batch_size,
            parallel=parallel,
        )

    def write(self, workdir: pathlib.Path) -> None:
        """Writes `run.json`, whole or not at all."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {
            "format": FORMAT,
            "model": dataclasses.asdict(self.model),
            "preprocessing": self.preprocessing.to_dict(),
        }
        write_atomically(workdir / FILE, json.dumps(values, indent=2, default=plain) + "\n")

    @classmethod
    def read(cls, workdir: str | pathlib.Path) -> "RunDescription":
        """Reads `run.json`, also of an earlier format.

        Keys that an earlier version did not write have their defaults; it augmented on the host.
        Keys that this version does not know are named in one warning and left out.

        Raises:
            FileNotFoundError: the folder holds no run.
            UserError: the file is damaged, or a later version with another format wrote it.
        """
        path = pathlib.Path(workdir) / FILE
        if not path.is_file():
            raise MissingFileError(
                f"{workdir} holds no run ({FILE} is missing); train first, or give a run's folder"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            written_in = values.get("format", 1)
            if written_in > FORMAT:
                raise UserError(
                    f"{path} has the format {written_in}, and this version of medmamba_jax reads"
                    f" formats up to {FORMAT}: install a later version"
                )
            if written_in == 1:
                values = _from_format_1(values)
            if written_in < CONTENT_FORMAT:  # such runs split similar images like others
                values["config"]["data"].setdefault("group_similar", "off")
            return cls._of(values, path, written_in)
        except _SIGNS_OF_DAMAGE as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}: {error}): restore it from a copy"
            ) from error

    @classmethod
    def _of(
        cls, values: Mapping[str, Any], path: pathlib.Path, written_in: int
    ) -> "RunDescription":
        known = {field.name for field in dataclasses.fields(cls)}
        ignored = sorted(values.keys() - known)
        variant = values["config"]["model"].get("variant", "")
        kind = architecture_of(variant)
        fields, unknown = _fields(kind, values["model"])
        model = kind(**fields)
        if kind is MedMambaConfig and "depths" not in fields:
            # Only the script that trained the run knows its network.
            model, unknown = UnknownArchitecture(variant, values["model"]), []
        ignored += [f"model.{key}" for key in unknown]
        preprocessing = Preprocessing.from_dict(values["preprocessing"], ignored=ignored)
        if ignored:
            logging.warning(
                "%s has keys that this version does not know: %s", path, ", ".join(ignored)
            )
        kept = {key: value for key, value in values.items() if key in known}
        if values["config"]["data"].get("augmentation", "none") != "none":
            kept["augmented_on"] = kept.get("augmented_on") or HOST
        return cls(
            **kept
            | {
                "model": model,
                "preprocessing": preprocessing,
                "class_names": tuple(map(shown_name, values["class_names"])),
                "format": written_in,
            }
        )


def plain(value: Any) -> Any:
    """Returns a NumPy scalar, which JSON cannot hold, as a number of Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no value for JSON")


def _fields(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the values of a dataclass's fields, and the keys that name no field."""
    names = {field.name for field in dataclasses.fields(cls)}
    known = {key: value for key, value in values.items() if key in names}
    return known, sorted(values.keys() - names)


def _from_format_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `run.json` of format 1, which had no format number, in today's keys.

    Early runs lack some of the keys. Keys of sources that the run did not read are left out.
    """
    config = values["experiment"]
    data = dict(config["data"])

    def taken(names: Mapping[str, str]) -> dict[str, Any]:
        """Takes keys out of `data`, and returns their values under today's names."""
        return {new: data.pop(old) for new, old in names.items() if old in data}

    columns = ("path_column", "label_column", "split_column", "group_column", "weight_column")
    sections = {
        "tfds": {
            "name": taken({"name": "name"}),
            "public": taken({key: key for key in ("manual_dir", "splits", "accept_changed_files")}),
        },
        "csv": {"path": taken({"path": "table"}), "csv": taken({key: key for key in columns})},
        "image_folder": {"folder": taken({"group_pattern": "group_pattern"})},
        "phantom": {"phantom": taken({"images": "phantom_images"})},
    }
    source, root = data.pop("source"), data.pop("root", "")
    kept = sections.get(source, {})
    data |= {key: kept[key] for key in ("public", "csv", "folder", "phantom") if key in kept}
    if source == "tfds":
        data |= kept["name"]
        data["public"]["data_dir"] = root
    elif source == "phantom":
        data["name"] = "phantom"
    else:
        data["path"] = kept["path"]["path"] if source == "csv" else root
    rest = {key: value for key, value in values.items() if key != "experiment"}
    return rest | {"config": {**config, "data": data}}
