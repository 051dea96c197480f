"""Finds the published file of a set where the user put it, or downloads it."""

import contextlib
import errno
import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from medmamba_jax.data.public.downloading import download
from medmamba_jax.data.public.facts import Archive, PublicSet
from medmamba_jax.errors import DataUnavailableError, MissingFileError, UserError

ACCEPT = "accept it as it is with data.public.accept_changed_files=True"

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
# OSErrors with these numbers mean a damaged file: bz2 sets none, and a seek to an impossible place
# sets EINVAL. All others are errors of the disk.
_DAMAGED_ERRNO = (None, errno.EINVAL)


@contextlib.contextmanager
def obtained(
    public_set: PublicSet, *, download_dir: Path, manual_dir: Path | None, accept_changed: bool
) -> Iterator[Path]:
    """Yields the file or the folder of a set, and explains errors from reading it.

    A download that is damaged is removed, so that the next attempt downloads it again.

    Args:
        public_set: the set.
        download_dir: the folder of the downloads.
        manual_dir: the folder in which the user put the archive or the files in it. If it holds a
            file with the archive's published name, this file is used, else the whole folder. None
            means that the archive is downloaded.
        accept_changed: accept a file whose checksum differs from the published one.

    Raises:
        DataUnavailableError: the download fails, or it is damaged.
        FileNotFoundError: `manual_dir` does not exist.
        UserError: the files are not those of the set, or a file of the user is damaged.
    """
    archive, page = public_set.archive, public_set.page
    downloaded = manual_dir is None
    if manual_dir is None:
        location = download_dir / archive.name
        try:
            download(archive.url, location)
        except OSError as error:
            raise _unavailable(
                public_set, f"{archive.url} could not be downloaded ({error})"
            ) from error
    elif manual_dir.is_dir():
        file = manual_dir / archive.name
        location = file if file.is_file() else manual_dir
    else:
        raise MissingFileError(
            f"no directory {manual_dir}: set data.public.manual_dir to the directory that holds"
            f" {archive.name} from {page}, or the files in it"
        )

    def refused(problem: str, remedy: str) -> Exception:
        if not downloaded:
            return UserError(f"{location} {problem}: {remedy}")
        location.unlink(missing_ok=True)  # another process may have removed it already
        return _unavailable(public_set, f"the download from {archive.url} {problem}")

    if location.is_file() and not accept_changed and (found := _difference(archive, location)):
        raise refused(found, f"get it again from {page}, or {ACCEPT}")
    try:
        yield location
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _DAMAGED_ERRNO:
            raise
        raise refused(f"is damaged ({error})", "get it again") from error
    except (ValueError, RuntimeError) as error:  # zipfile raises RuntimeError for encryption
        raise UserError(
            f"{location} cannot be used: {error}. The set is published at {page}"
        ) from error


def _unavailable(public_set: PublicSet, problem: str) -> DataUnavailableError:
    return DataUnavailableError(
        f"{problem}. Try again, or get {public_set.archive.name} from {public_set.page} and put it"
        " into data.public.manual_dir; `medmamba train` runs on synthetic images without any"
        " download"
    )


def _difference(archive: Archive, file: Path) -> str | None:
    """Returns how a file differs from the published one; None if no known fact differs."""
    for algorithm, expected in (("md5", archive.md5), ("sha256", archive.sha256)):
        if expected is None:
            continue
        with file.open("rb") as content:
            actual = hashlib.file_digest(content, algorithm).hexdigest()
        if actual != expected:
            return f"has the {algorithm} {actual}, not {expected} as published"
    size = file.stat().st_size
    if archive.size not in (None, size):
        return f"has {size} bytes, not the {archive.size} of the published file"
    return None
