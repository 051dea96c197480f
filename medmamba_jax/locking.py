"""One process at a time."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from absl import logging

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Waits until no other process is in here with the same `path`, and says so.

    The lock ends with the process that holds it, however that ends. The file stays: if it were
    removed, one process might hold the old file and another one a new file. Where there are no
    locks, as on Windows and some network drives, nobody waits, and that is logged.

    Args:
        path: an empty file, made if it does not exist.
        what: is going on, for the log.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("ab") as file:
        if not _lock(file, wait=False):
            logging.warning("another process is %s: waiting for it", what)
            _lock(file, wait=True)
        yield


class Lock:
    """A lock that is held until it is closed, nobody refers to it, or the process ends."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def close(self) -> None:
        self._file.close()

    __del__ = close


def hold(path: Path) -> Lock | None:
    """Takes a lock as `alone` does, but does not wait.

    Returns:
        The lock; None if another process, or this one, holds it already.

    Raises:
        OSError: the file cannot be written.
    """
    lock = Lock(path.open("ab"))
    return lock if _lock(lock._file, wait=False) else None


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Returns whether no other process holds the lock any more."""
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
