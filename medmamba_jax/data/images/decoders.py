"""The libraries that decode files, most of them from the extra `formats`."""

import importlib
from importlib import metadata
from typing import Any

from medmamba_jax.errors import DataUnavailableError

# They decide which pixels a file decodes to.
_LIBRARIES = ("pillow", "imagecodecs", "tifffile", "pydicom", "nibabel", "pillow-heif")


def decoder_versions() -> dict[str, str]:
    """Returns package name -> version for the installed libraries."""
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions


def decoder(module: str, what: str) -> Any:
    """Imports a library that reads a kind of file.

    Args:
        module: the name that `import` takes.
        what: the kind of file, in words; it begins the message.

    Raises:
        DataUnavailableError: the library is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(module, what) from error


def missing(package: str, what: str) -> DataUnavailableError:
    """Returns the error for a kind of file whose library is not installed."""
    if package == "pillow_heif":  # in no extra, because its wheels hold x265
        return DataUnavailableError(
            f"{what} needs the package pillow-heif, which is not installed: convert the file to"
            " PNG, or install it yourself; its wheels contain code under the GPL"
        )
    return DataUnavailableError(
        f"{what} needs the package {package}, which is not installed or too old: pip install"
        ' "medmamba-jax[formats]"'
    )
