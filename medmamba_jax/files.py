"""Paths as users write them; what may be replaced; a file that is written completely or not at all.

One rule holds for all commands: a command replaces nothing that is at `--output`, unless
`--overwrite` is given.
"""

import os
import pathlib
import tempfile
import uuid
from collections.abc import Callable, Iterable

from medmamba_jax.errors import UserError


def expanded(path: str | pathlib.Path) -> pathlib.Path:
    """Returns a path with `~` replaced by the home folder.

    Raises:
        UserError: the path begins with `~`, and there is no such home folder.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: the home folder is not known; set the environment variable HOME, or give the"
            " whole path"
        ) from error


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces `path` by `content`; a reader sees the old file or the new one, never a part.

    A crash leaves the old file in place. Two processes may write the same path: the last one wins.

    Args:
        path: the file. Its folder exists.
        content: bytes, or text. Text is written as UTF-8, and its line ends do not change.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    # Names of files that are not UTF-8 come and go as Python holds them.
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def require_free(
    path: pathlib.Path, *, overwrite: bool, source: pathlib.Path | None = None
) -> None:
    """Checks that a file may be written.

    Args:
        path: the file.
        overwrite: whether another file may be replaced.
        source: the file or folder that is read; it is never replaced.

    Raises:
        FileExistsError: there is such a file, and it may not be replaced.
        UserError: there is a folder of this name.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if path.exists():
        if source is not None and source.exists() and path.samefile(source):
            raise FileExistsError(f"{path} is the input too; give another file")
        if not overwrite:
            raise FileExistsError(f"{path} exists; give another file, or --overwrite")


def make_output_folder(
    folder: pathlib.Path,
    last: str,
    written: Callable[[pathlib.Path], Iterable[pathlib.Path]],
    *,
    overwrite: bool = False,
) -> None:
    """Makes the folder that a command writes into, if it is not there. It must be empty.

    Args:
        folder: the folder.
        last: the name of the file that every call writes, and writes last, so that it shows an
            earlier call.
        written: returns the other files in the folder that an earlier call has written.
        overwrite: whether the folder may hold the files of an earlier call. They are then removed,
            and other files stay.

    Raises:
        FileExistsError: it is a folder with files, which may not be removed.
        OSError: the folder cannot be made or written to.
        UserError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / last).is_file():
            raise FileExistsError(
                f"{folder} has files but no {last}, which a finished call writes last: give a new"
                " folder, or empty this one if an unfinished call has written the files"
            )
        if not overwrite:
            raise FileExistsError(f"{folder} is not empty; give a new folder, or --overwrite")
    require_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*written(folder), folder / last):
        path.unlink(missing_ok=True)


def require_writable(folder: pathlib.Path) -> None:
    """Raises OSError unless files can be made in the folder, or where it will be made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(folder)) from error
