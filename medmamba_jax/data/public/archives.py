"""Reads the files of a folder or a zip, and of zips inside it, without extracting them.

A zip inside a folder or a zip counts as a folder with the name of the zip.
"""

import contextlib
import functools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from medmamba_jax.errors import UserError

# Path inside the folder -> function that reads the file.
Members = dict[str, Callable[[], bytes]]

_ZIP_DEPTH = 2  # A zip in a zip is opened; a zip inside that is a file like any other.
_ENCRYPTED = 0x1
_LARGEST = 1 << 30  # bytes of a file that is read into memory; images are far smaller


class Files:
    """Files by name.

    Args:
        members: name, with "/" between folders -> a function that reads the file.
    """

    def __init__(self, members: Mapping[str, Callable[[], bytes]]):
        self._members = members

    @property
    def names(self) -> list[str]:
        """The names of the files, in the order in which they lie in their archives.

        Read the files in this order: a step back in a zip that is compressed inside another zip
        decompresses the inner zip from its start.
        """
        return list(self._members)

    def read(self, name: str) -> bytes:
        return self._members[name]()

    def only(self, name: str) -> str:
        """Returns the path of the one file of this name, in any folder.

        Raises:
            UserError: there is no such file, or more than one.
        """
        found = [file for file in self._members if PurePosixPath(file).name == name]
        if len(found) != 1:
            problem = f"in several places {found}: keep one of them" if found else "not there"
            raise UserError(f"the file {name} is {problem}")
        return found[0]


@contextlib.contextmanager
def open_files(location: Path) -> Iterator[Files]:
    """Opens a folder or a zip. It leaves out hidden files and those that macOS adds to zips.

    Raises:
        zipfile.BadZipFile: an archive is damaged.
        UserError: a zip has a path outside of its folder, the same name twice, or encrypted files.
    """
    members: Members = {}
    with contextlib.ExitStack() as stack:
        if location.is_dir():
            _add_folder(members, location, stack)
        else:
            _add_zip(members, _open_zip(location, location.name, stack), "", 1, stack)
        yield Files(members)


def _add_folder(members: Members, root: Path, stack: contextlib.ExitStack) -> None:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if _is_hidden(name) or not path.is_file():
            continue
        if _is_zip(name):
            _add_zip(members, _open_zip(path, name, stack), f"{name}/", 1, stack)
        else:
            members[name] = path.read_bytes


def _add_zip(
    members: Members,
    archive: zipfile.ZipFile,
    prefix: str,
    depth: int,
    stack: contextlib.ExitStack,
) -> None:
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = prefix + info.filename
        if _leads_outside(info.filename):
            raise UserError(f"it holds a path outside of its folder, {name!r}: get it elsewhere")
        if info.is_dir() or _is_hidden(name):
            continue
        if info.flag_bits & _ENCRYPTED:
            raise UserError(f"{name} is encrypted: extract it by hand")
        if name in members:
            raise UserError(f"{name} is in it twice: keep one of them")
        if _is_zip(name) and depth < _ZIP_DEPTH:
            inner = _open_zip(stack.enter_context(archive.open(info)), name, stack)
            _add_zip(members, inner, f"{name}/", depth + 1, stack)
        else:
            members[name] = functools.partial(_read, archive, info, name)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    if info.file_size > _LARGEST:
        raise UserError(f"{name} unpacks to {info.file_size} bytes, too many for memory: remove it")
    with archive.open(info) as file:
        return file.read(info.file_size)  # unpacks no more bytes than the zip announces


def _open_zip(file: Path | IO[bytes], name: str, stack: contextlib.ExitStack) -> zipfile.ZipFile:
    try:
        return stack.enter_context(zipfile.ZipFile(file))
    except zipfile.BadZipFile as error:
        raise zipfile.BadZipFile(f"{name}: {error}") from error


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


def _leads_outside(name: str) -> bool:
    path = PureWindowsPath(name)  # it parses both kinds of slash, and drives
    return bool(path.anchor) or ".." in path.parts
