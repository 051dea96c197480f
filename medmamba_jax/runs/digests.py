"""Digests of the files of a checkpoint, which show damage before anything of it is used.

Orbax does not check what arrays contain: a changed bit in a file of arrays is a changed weight.
Therefore each checkpoint holds `SHA256SUMS`, a line for each file of its parts, in the format of
`sha256sum`. Files have digests, and not arrays in memory, for three reasons: the files of metadata
are covered, too; the background thread that writes the checkpoint can compute them; and they do not
depend on how the arrays are spread over devices.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable

from medmamba_jax.files import write_atomically

FILE = "SHA256SUMS"


def write_digests(folder: pathlib.Path) -> None:
    """Writes the digests of all files in the folders of a checkpoint, which must be complete.

    Orbax still changes the files beside these folders, which hold nothing that is read.
    """
    lines = [
        f"{_digest(folder / name)}  {name}\n"
        for part in sorted(path.name for path in folder.iterdir() if path.is_dir())
        for name in _files(folder, part)
    ]
    write_atomically(folder / FILE, "".join(lines))


def has_digests(folder: pathlib.Path) -> bool:
    """Whether digests were written with a checkpoint. Earlier versions wrote none."""
    if (folder / FILE).exists():
        return True
    # The version that began to write digests began to count steps, too. So a checkpoint that
    # counts steps has lost its digests.
    try:
        return "steps" in json.loads((folder / "progress" / "metadata").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def damage(folder: pathlib.Path, parts: Iterable[str] | None = None) -> str:
    """Returns what is damaged in a checkpoint with digests, in a few words; "" if it is sound.

    Args:
        folder: the checkpoint.
        parts: the folders in it to look at; None means all that are there or have digests.
    """
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
        there = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    except (OSError, ValueError) as error:
        return f"{FILE}: {_reason(error)}"
    written = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if parts is None:
        # A list that was cut off does not name each part that is there.
        parts = {name.partition("/")[0] for name in written} | there
    for part in sorted(parts):
        expected = {name for name in written if name.startswith(f"{part}/")}
        try:
            found = set(_files(folder, part))
            if missing := sorted(expected - found):
                return f"{missing[0]} is missing"
            if not expected or found - expected:
                return f"{FILE} does not name {min(found - expected, default=part)}"
            for name in sorted(expected):
                if _digest(folder / name) != written[name]:
                    return f"the content of {name} has changed"
        except OSError as error:
            return f"{part}: {_reason(error)}"
    return ""


def _files(folder: pathlib.Path, part: str) -> list[str]:
    """Returns the names of the files in a part. Hidden files are those of a file system."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in (folder / part).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or type(error).__name__)
