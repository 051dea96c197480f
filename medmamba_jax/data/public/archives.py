"""Reads the files of a folder or a zip, and of zips inside it, without extracting them.

A zip inside a folder or a zip counts as a folder with the name of the zip.
"""

import contextlib
import functools
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from medmamba_jax.errors import UserError

# Path of a file, with "/" between folders -> function that reads the file.
Files = dict[str, Callable[[], bytes]]

_ZIP_DEPTH = 2  # A zip in a zip is opened; a zip inside that is a file like any other.
_ENCRYPTED = 0x1
_LARGEST = 1 << 30  # bytes of a file that is read into memory; images are far smaller


@contextlib.contextmanager
def open_files(location: Path) -> Iterator[Files]:
    """Opens a folder or a zip. It leaves out hidden files and those that macOS adds to zips.

    The files are in the order in which they lie in their archives. Read them in this order: a step
    back in a zip that is compressed inside another zip decompresses the inner zip from its start.

    Raises:
        zipfile.BadZipFile: an archive is damaged.
        UserError: a zip has a path outside of its folder, a link, a device, the same name twice, or
            encrypted files.
    """
    files: Files = {}
    with contextlib.ExitStack() as stack:
        if not location.is_dir():
            _add_zip(files, location, location.name, stack)
        for path in sorted(location.rglob("*")):
            name = path.relative_to(location).as_posix()
            if _is_hidden(name) or not path.is_file():
                continue
            if _is_zip(name):
                _add_zip(files, path, name, stack, prefix=f"{name}/")
            else:
                files[name] = path.read_bytes
        yield files


def _add_zip(
    files: Files,
    file: Path | IO[bytes],
    name: str,
    stack: contextlib.ExitStack,
    prefix: str = "",
    depth: int = 1,
) -> None:
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
    except zipfile.BadZipFile as error:
        raise zipfile.BadZipFile(f"{name}: {error}") from error
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = prefix + info.filename
        place = PureWindowsPath(info.filename)  # it parses both kinds of slash, and drives
        if place.anchor or ".." in place.parts:
            raise UserError(f"it holds a path outside of its folder, {name!r}: get it elsewhere")
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the zip does not say
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"it holds a link or a device, {name!r}: get it elsewhere")
        if info.is_dir() or _is_hidden(name):
            continue
        if info.flag_bits & _ENCRYPTED:
            raise UserError(f"{name} is encrypted: extract it by hand")
        if name in files:
            raise UserError(f"{name} is in it twice: keep one of them")
        if _is_zip(name) and depth < _ZIP_DEPTH:
            inner = stack.enter_context(archive.open(info))
            _add_zip(files, inner, name, stack, f"{name}/", depth + 1)
        else:
            files[name] = functools.partial(_read, archive, info, name)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    if info.file_size > _LARGEST:
        raise UserError(f"{name} unpacks to {info.file_size} bytes, too many for memory: remove it")
    with archive.open(info) as file:
        return file.read(info.file_size)  # unpacks no more bytes than the zip announces


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)
