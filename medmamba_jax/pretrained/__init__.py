"""The trained models that come with the package. `<name>.md` beside a file is its model card."""

import pathlib

from medmamba_jax.errors import MissingFileError

FOLDER = pathlib.Path(__file__).parent
# Name -> the file in this folder, which `medmamba export RUN --to=safetensors` wrote.
SHIPPED = {"xray-nano": "xray_nano.safetensors"}


def shipped_file(name: str) -> pathlib.Path:
    """Returns the file of a model of `SHIPPED`.

    Raises:
        FileNotFoundError: this installation lacks the file.
    """
    path = FOLDER / SHIPPED[name]
    if not path.is_file():
        raise MissingFileError(
            f"this installation lacks the model {name!r} ({path}): install medmamba-jax again"
        )
    return path
