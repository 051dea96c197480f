"""Locks that let only one process at a time do something."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from absl import logging

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Holds a lock on `path`. It waits, and logs this, while another process holds the lock.

    The lock ends with the process that holds it, even if that process crashes. The file stays: if
    it were removed, one process might lock the old file and another one a new file. Windows and
    some network drives have no locks. There the function does not wait, and logs a warning.

    Args:
        path: an empty file. It is created if it does not exist.
        what: what the process does while it holds the lock, for the log.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("ab") as file:
        if not _lock(file, wait=False):
            logging.warning("another process is %s: waiting for it", what)
            _lock(file, wait=True)
        yield


class Lock:
    """A lock. It ends when `close` is called, the object is deleted, or the process ends."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def close(self) -> None:
        self._file.close()

    __del__ = close


def hold(path: Path) -> Lock | None:
    """Takes the same lock as `alone`, but does not wait for it.

    Returns:
        The lock; None if another process, or this one, holds it already.

    Raises:
        OSError: the file cannot be written.
    """
    lock = Lock(path.open("ab"))
    return lock if _lock(lock._file, wait=False) else None


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Tries to take the lock; returns False if another process holds it."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logging.warning("%s cannot be locked here: let no other process do the same", file.name)
    return True
