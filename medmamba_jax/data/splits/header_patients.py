"""Patients by the headers of DICOM files. Their identifiers leave the files only as hashes."""

import hashlib
import hmac
from collections.abc import Mapping

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.images.dicom import header_tag
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.naming import listed
from medmamba_jax.errors import UserError

_PATIENT = "PatientID"
_LOOKED_AT = 20  # images, where nobody asked for patients
_DIGITS = 16  # of a hash; two of a million patients are alike with a chance of 3e-8


def looked_at(found: LabelledImages, config: DataConfig) -> tuple[str, frozenset[int]]:
    """Returns the tag that the first pass reads in headers, and the rows where it reads it.

    If `config.group_tag` is set, these are all rows. If nobody names patients, these are a few
    rows for a note, else none.

    Raises:
        UserError: the source names groups, too; or the first image does not have the tag.
    """
    tag, count = config.group_tag, len(found)
    if not tag:
        few = np.linspace(0, count - 1, _LOOKED_AT).astype(int) if found.groups is None else ()
        return _PATIENT, frozenset(map(int, few))
    if found.groups is not None:
        raise UserError(
            f"data.group_tag is {tag!r}, but {found.name} names patients (groups) otherwise: leave"
            " data.group_tag empty, or turn the other off (data.csv.group_column='',"
            " data.folder.group_pattern='')"
        )
    if not config.allow_unreadable:  # a tag that does not exist fails at once
        if not header_tag(found.file(0), tag):
            raise _lacks(found, [0], tag)
    return tag, frozenset(range(count))


def header_patients(
    found: LabelledImages, headers: Mapping[int, str | None], contents: np.ndarray, tag: str
) -> np.ndarray:
    """Returns the group of each image, from the tag of its header (n,).

    A group is a keyed hash (HMAC-SHA256) of the identifier. The key is the hash of the contents of
    all files. Whoever has only the hashes cannot make the key, and so cannot try identifiers. The
    same files give the same hashes on every machine, and so the same split.

    Args:
        found: the images.
        headers: row -> text of the tag.
        contents: the content hash of every image that the source has, uint8 (m, 32).
        tag: the tag, for an error.

    Raises:
        UserError: an image does not have the tag.
    """
    lacking = [row for row in range(len(found)) if not headers.get(row)]
    if lacking:
        raise _lacks(found, lacking, tag)
    values = [str(headers[row]) for row in range(len(found))]
    key = hashlib.sha256(b"".join(sorted(map(bytes, contents)))).digest()
    hashed = (hmac.new(key, value.encode(), hashlib.sha256).hexdigest() for value in values)
    return np.array([f"h{digits[:_DIGITS]}" for digits in hashed])


def note_patients(headers: Mapping[int, str | None]) -> None:
    """Warns if headers name patients; it does not show them."""
    named = sum(value is not None for value in headers.values())
    if named:
        logging.warning(
            "DICOM headers name patients (%s, in %d of %d images that were looked at), but no"
            " patients are set: data.group_tag=%s keeps the images of each patient in one split",
            _PATIENT,
            named,
            len(headers),
            _PATIENT,
        )


def _lacks(found: LabelledImages, rows: list[int], tag: str) -> UserError:
    first, count = found.describe(rows[0]), len(rows)
    which = f"{count} of {len(found)} images have" if count > 1 else f"{first} has"
    named = f" ({listed([found.names[row] for row in rows])})" if count > 1 else ""
    return UserError(
        f"{which} no {tag} in a DICOM header{named}, but data.group_tag asks for it: leave these"
        " out (data.exclude), leave data.group_tag empty, or name patients in a table"
    )
