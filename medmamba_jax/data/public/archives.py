"""Reading the files of a folder or of a zip, and of zips in it, without extracting anything.

A zip counts as a folder by its name, so that a published archive, the zip inside it, and the folder
that a user extracted have the same paths.
"""

import contextlib
import functools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from medmamba_jax.errors import UserError

_ZIP_DEPTH = 2  # A zip in a zip is opened; a zip inside that is a file like any other.
_ENCRYPTED = 0x1
_LARGEST = 1 << 30  # bytes of a file that is read whole: far more than any image has


class Files:
    """Files by name.

    Args:
        members: name, with "/" between folders -> a function that reads the file.
    """

    def __init__(self, members: Mapping[str, Callable[[], bytes]]):
        self._members = members

    @property
    def names(self) -> list[str]:
        """In the order in which the files lie in their archives.

        Reading backwards from a compressed zip inside another starts it all over again.
        """
        return list(self._members)

    def read(self, name: str) -> bytes:
        return self._members[name]()

    def only(self, name: str) -> str:
        """Returns the path of the one file of this name, in any folder.

        Raises:
            UserError: there is none, or more than one.
        """
        found = [file for file in self._members if PurePosixPath(file).name == name]
        if len(found) != 1:
            problem = f"in several places {found}: keep one of them" if found else "not there"
            raise UserError(f"the file {name} is {problem}")
        return found[0]


@contextlib.contextmanager
def open_files(location: Path) -> Iterator[Files]:
    """Opens a folder or a zip. Hidden files and those that macOS adds to zips are left out.

    Raises:
        zipfile.BadZipFile: an archive is damaged.
        UserError: a zip holds a path outside of its folder, a name twice, or encrypted files.
    """
    members: dict[str, Callable[[], bytes]] = {}
    with contextlib.ExitStack() as stack:
        if location.is_dir():
            _add_folder(members, location, stack)
        else:
            _add_zip(members, _open_zip(location, location.name, stack), "", 1, stack)
        yield Files(members)


def _add_folder(members, root, stack):
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if _is_hidden(name) or not path.is_file():
            continue
        if _is_zip(name):
            _add_zip(members, _open_zip(path, name, stack), f"{name}/", 1, stack)
        else:
            members[name] = path.read_bytes


def _add_zip(members, archive, prefix, depth, stack):
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


def _read(archive, info, name):
    if info.file_size > _LARGEST:
        raise UserError(f"{name} unpacks to {info.file_size} bytes, too many for memory: remove it")
    with archive.open(info) as file:
        return file.read(info.file_size)  # no more is unpacked than the zip says


def _open_zip(file, name, stack):
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
    path = PureWindowsPath(name)  # understands both kinds of slash, and drives
    return bool(path.anchor) or ".." in path.parts
