"""Paths as users write them; files that are written completely or not at all."""

import os
import pathlib
import tempfile
import uuid

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


def require_writable(folder: pathlib.Path) -> None:
    """Raises OSError unless files can be made in the folder, or where it will be made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(folder)) from error


def check_free(target: pathlib.Path, source: pathlib.Path, overwrite: bool) -> None:
    """Raises FileExistsError if the target exists, unless it may be replaced.

    Args:
        target: the file that will be written.
        source: the file or folder that is read; it is never replaced.
        overwrite: whether another file may be replaced.
    """
    if target.exists():
        if source.exists() and target.samefile(source):
            raise FileExistsError(f"{target} is the input too; give another file")
        if not overwrite:
            raise FileExistsError(f"{target} exists; give another file, or --overwrite")
