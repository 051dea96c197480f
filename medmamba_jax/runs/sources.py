"""Trained models as users name them: a run's folder, an exported file, a model of the package."""

import dataclasses
import pathlib

import numpy as np

from medmamba_jax.data import DataConfig, LabelledImages
from medmamba_jax.data.build import find_images
from medmamba_jax.data.csv_table import read_csv_table
from medmamba_jax.errors import DataUnavailableError, MissingFileError, UserError
from medmamba_jax.exports import NO_LICENCE, Training, read_exported
from medmamba_jax.files import expanded
from medmamba_jax.predictor import Predictor
from medmamba_jax.pretrained import SHIPPED, shipped_file
from medmamba_jax.runs.run import Run, load_run
from medmamba_jax.runs.workdir import SPLIT_TABLE

# What commands say of their argument RUN.
SOURCES_OF_MODELS = (
    "a run's folder, such as runs/xray, a .safetensors file that `medmamba export` wrote, or a"
    " model that comes with the package, such as xray-nano"
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, and where it comes from.

    Attributes:
        predictor: the model.
        training: how it was trained.
        licence: the terms of its weights.
        run: the run that it comes from; None if it was read from a file.
    """

    predictor: Predictor
    training: Training | None
    licence: str = NO_LICENCE
    run: Run | None = None


def load_trained(source: str | pathlib.Path, *, batch_size: int | None = None) -> Trained:
    """Loads a trained model.

    Args:
        source: a run's folder, whose best checkpoint is taken; a `.safetensors` file that
            `medmamba export` wrote; or else a name in `SHIPPED`.
        batch_size: the most images in a batch; None means the run's own, or 64 for a file.

    Raises:
        FileNotFoundError: there is no such run, file or model.
        UserError: the run or the file is damaged, or another program wrote the file.
    """
    path = expanded(source)
    if path.is_dir():
        run = load_run(path, batch_size=batch_size)
        about = run.description
        training = Training(
            dataset=about.dataset,
            synthetic=about.synthetic,
            augmentation=about.config["data"]["augmentation"],
            epoch=run.epoch,
        )
        return Trained(run.predictor, training, run=run)
    if not path.exists():
        if str(source) not in SHIPPED:
            raise MissingFileError(
                f"there is no {source}: give a run's folder, a .safetensors file that `medmamba"
                f" export` wrote, or the name of a model that comes with the package"
                f" ({', '.join(SHIPPED)})"
            )
        path = shipped_file(str(source))
    predictor, meaning = read_exported(path, batch_size=batch_size)
    return Trained(predictor, meaning.training, meaning.licence)


def load_predictor(source: str | pathlib.Path, *, batch_size: int | None = None) -> Predictor:
    """Loads a trained model as a `Predictor`; arguments and errors as for `load_trained`."""
    return load_trained(source, batch_size=batch_size).predictor


def validation_images(run: Run) -> LabelledImages:
    """Returns the validation images of a run, without a check that they are still the same.

    Raises:
        DataUnavailableError: they would have to be downloaded.
        OSError, UserError: they are not where they were.
    """
    config = DataConfig.from_dict(run.description.config["data"], ignored=[])
    if not (config.path or config.name):
        raise UserError("the run was trained on images that a program passed to it")
    stored = config.path or (config.public.data_folder / config.name).is_dir()
    if config.name != "phantom" and not stored:
        raise DataUnavailableError(f"the set {config.name!r} is not stored on this machine")
    found = find_images(config)
    table = read_csv_table(run.workdir / SPLIT_TABLE)
    pairs = zip(table.column("path"), table.column("split"), strict=True)
    wanted = {path for path, split in pairs if split == "val"}
    names = found.names if found.files is None else found.files.tolist()
    rows = np.flatnonzero([name in wanted for name in names])
    if not len(rows):
        raise UserError(f"none of the images in {config.path or config.name} is one of the run")
    return found.take(np.array(rows))
