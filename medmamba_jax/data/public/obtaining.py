"""Finds the published file of a set where the user put it, or downloads it."""

import contextlib
import dataclasses
import errno
import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from medmamba_jax.data.public.downloading import download
from medmamba_jax.data.public.facts import Archive, PublicSet
from medmamba_jax.errors import DataUnavailableError, UserError

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
# OSErrors with these numbers mean a damaged file: bz2 sets none, and a seek to an impossible place
# sets EINVAL. All others are errors of the disk.
_DAMAGED_ERRNO = (None, errno.EINVAL)
_ACCEPT = "accept it as it is with data.public.accept_changed_files=True"


@dataclasses.dataclass(frozen=True)
class Obtained:
    """The files of a set on this machine.

    Attributes:
        public_set: the set.
        location: a file or a folder.
        downloaded: whether the program downloaded the file; False if the user gave it.
    """

    public_set: PublicSet
    location: Path
    downloaded: bool

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turns exceptions from reading the files into errors that name a remedy.

        Raises:
            DataUnavailableError: a download is damaged. The download is removed, so that the next
                attempt downloads it again.
            UserError: a file of the user is damaged, or the files are not those of the set.
        """
        try:
            yield
        except (*_DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _DAMAGED_ERRNO:
                raise
            reason = f"is damaged ({error})"
            if self.downloaded:
                raise self.discarded(reason) from error
            raise UserError(f"{self.location} {reason}: get it again") from error
        except (ValueError, RuntimeError) as error:  # zipfile raises RuntimeError for encryption
            raise UserError(
                f"{self.location} cannot be used: {error}. The set is published at"
                f" {self.public_set.page}"
            ) from error

    def discarded(self, reason: str) -> DataUnavailableError:
        """Removes the download, and returns the error to raise."""
        self.location.unlink(missing_ok=True)  # another process may have removed it already
        url = self.public_set.archive.url
        return _unavailable(self.public_set, f"the download from {url} {reason}")


def obtain(
    public_set: PublicSet, *, download_dir: Path, manual_dir: Path | None, accept_changed: bool
) -> Obtained:
    """Finds the files of a set, or downloads them.

    Args:
        public_set: the set.
        download_dir: the folder of the downloads.
        manual_dir: the folder in which the user put the archive or the files in it. If it holds a
            file with the archive's published name, this file is used, else the whole folder. None
            means that the archive is downloaded.
        accept_changed: accept a file whose checksum differs from the published one, and files that
            `PublicSet.mistaken` rejects.

    Raises:
        DataUnavailableError: the download fails.
        FileNotFoundError: `manual_dir` does not exist.
        UserError: the files of the user differ from the published ones.
    """
    archive = public_set.archive
    if manual_dir is None:
        obtained = Obtained(public_set, _downloaded(public_set, download_dir), downloaded=True)
    elif manual_dir.is_dir():
        file = manual_dir / archive.name
        obtained = Obtained(public_set, file if file.is_file() else manual_dir, downloaded=False)
    else:
        raise FileNotFoundError(
            f"no directory {manual_dir}: set data.public.manual_dir to the directory that holds"
            f" {archive.name} from {public_set.page}, or the files in it"
        )
    if accept_changed:
        return obtained
    if public_set.mistaken is not None:
        with obtained.explained():
            if mistake := public_set.mistaken(obtained.location):
                raise UserError(f"{mistake}, or {_ACCEPT}")
    if obtained.location.is_dir():
        return obtained
    if difference := _difference(archive, obtained.location):
        if obtained.downloaded:
            raise obtained.discarded(difference)
        raise UserError(
            f"{obtained.location} {difference}: get it again from {public_set.page}, or {_ACCEPT}"
        )
    return obtained


def _downloaded(public_set: PublicSet, folder: Path) -> Path:
    target = folder / public_set.archive.name
    if not target.exists():
        url = public_set.archive.url
        try:
            download(url, target)
        except OSError as error:
            reason = f"{url} could not be downloaded ({error})"
            raise _unavailable(public_set, reason) from error
    return target


def _unavailable(public_set: PublicSet, reason: str) -> DataUnavailableError:
    return DataUnavailableError(
        f"{reason}. Try again, or get {public_set.archive.name} from {public_set.page} and put it"
        " into data.public.manual_dir; `medmamba train` runs on synthetic images without any"
        " download"
    )


def _difference(archive: Archive, path: Path) -> str | None:
    """Returns how a file differs from the published one; None if no known fact differs."""
    for algorithm in ("md5", "sha256"):
        if (expected := getattr(archive, algorithm)) is None:
            continue
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, algorithm).hexdigest()
        if actual != expected:
            return f"has the {algorithm} {actual}, not {expected} as published"
    if archive.size is not None and path.stat().st_size != archive.size:
        return f"has {path.stat().st_size} bytes, not the {archive.size} of the published file"
    return None
