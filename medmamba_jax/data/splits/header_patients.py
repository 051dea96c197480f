"""Patients by the headers of DICOM files. Their identifiers leave the files only as hashes."""

import hashlib
import hmac
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.labelled_images import LabelledImages, content_hash
from medmamba_jax.errors import UserError

HeaderTag = Callable[[bytes, str], str | None]

_PATIENT = "PatientID"
_LOOKED_AT = 20  # files, where nobody asked for patients
_DIGITS = 16  # of a hash; two of a million patients are alike with a chance of 3e-8


def header_patients(
    found: LabelledImages, config: DataConfig, header_tag: HeaderTag
) -> np.ndarray | None:
    """Returns the group of each image, by the tag `config.group_tag` of its DICOM header (n,).

    A group is a keyed hash (HMAC-SHA256) of the identifier. The key is the hash of the contents of
    all files. Whoever has only the hashes cannot make the key, and so cannot try identifiers. The
    same files give the same hashes on every machine, and so the same split.

    Args:
        found: the images.
        config: the settings.
        header_tag: function that returns the text of a tag in the header of a file, or None.

    Returns:
        The groups. `found.groups` if no tag is set; then a warning says if headers name patients.

    Raises:
        UserError: the source names groups, too, or a file does not have the tag.
    """
    tag = config.group_tag
    if not tag:
        if found.groups is None and found.root is not None:
            _warn_of_patients(found, header_tag)
        return found.groups
    if found.groups is not None:
        raise UserError(
            f"data.group_tag is {tag!r}, but {found.name} names patients (groups) otherwise: leave"
            " data.group_tag empty, or turn the other off (data.csv.group_column='',"
            " data.folder.group_pattern='')"
        )

    def read(row: int) -> tuple[str, bytes]:
        image = found.read(row)
        value = header_tag(image, tag) if isinstance(image, bytes) else None
        if not value:
            raise UserError(
                f"{found.describe(row)} has no {tag} in a DICOM header, but data.group_tag asks"
                " for it: leave data.group_tag empty, or name patients in a table"
            )
        return value, content_hash(image)

    with ThreadPoolExecutor(usable_cpus()) as pool:
        values, contents = zip(*pool.map(read, range(len(found))), strict=True)
    key = hashlib.sha256(b"".join(sorted(contents))).digest()
    return np.array([_hashed(value, key) for value in values])


def _hashed(value: str, key: bytes) -> str:
    return "h" + hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:_DIGITS]


def _warn_of_patients(found: LabelledImages, header_tag: HeaderTag) -> None:
    rows = np.unique(np.linspace(0, len(found) - 1, _LOOKED_AT).astype(int))
    named = 0
    for row in rows:
        try:
            image = found.read(row)
            named += isinstance(image, bytes) and bool(header_tag(image, _PATIENT))
        except (OSError, ValueError, RuntimeError):
            continue  # the first pass names files that cannot be read
    if named:
        logging.warning(
            "DICOM headers name patients (%s, in %d of %d files that were looked at), but no"
            " patients are set: data.group_tag=%s keeps the images of each patient in one split",
            _PATIENT,
            named,
            len(rows),
            _PATIENT,
        )
