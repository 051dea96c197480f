"""Reads what `export` wrote in the format "safetensors"."""

import pathlib

from medmamba_jax.errors import UserError
from medmamba_jax.exports.meaning import KEY, Meaning
from medmamba_jax.interop import read_metadata, read_state_dict
from medmamba_jax.predictor import BATCH_SIZE, Predictor


def read_exported(
    path: pathlib.Path, *, batch_size: int | None = None
) -> tuple[Predictor, Meaning]:
    """Returns the model in an exported file of safetensors, and what the file says of it.

    Args:
        path: the file.
        batch_size: the most images in a batch; None means 64.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file holds no MedMamba, or another program wrote it, or it is damaged.
    """
    text = read_metadata(path).get(KEY)
    if text is None:
        raise UserError(
            f"{path} does not say what its classes and its preprocessing are, because `medmamba"
            f" export` did not write it: use mm.load_torch({str(path)!r}, class_names=...,"
            " preprocessing=...) in Python"
        )
    meaning = Meaning.from_json(text, str(path))
    size = BATCH_SIZE if batch_size is None else batch_size
    return meaning.predictor(read_state_dict(path), size), meaning
