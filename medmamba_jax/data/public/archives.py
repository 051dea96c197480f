"""Finding the images of the CPN chest X-ray set in the forms in which it reaches a user.

The published archive is a zip in a zip. It is read in place, or from the inner zip, or from the
extracted folder; nothing is written.
"""

import contextlib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from medmamba_jax.data.decoding import IMAGE_SUFFIXES

CLASS_NAMES = ("COVID", "NORMAL", "PNEUMONIA")


class FileReader(Protocol):
    """Files by name; a subset of the interface of `zipfile.ZipFile`."""

    def namelist(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...


class _Folder:
    def __init__(self, root: Path):
        self._root = root

    def namelist(self) -> list[str]:
        return [path.relative_to(self._root).as_posix() for path in self._root.rglob("*")]

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()


@contextlib.contextmanager
def open_files(location: Path) -> Iterator[FileReader]:
    """Opens a folder, a zip of class folders, or a zip that holds such a zip.

    Raises:
        zipfile.BadZipFile: if an archive is damaged.
        ValueError: if a zip without class folders does not hold exactly one other zip.
    """
    with contextlib.ExitStack() as stack:
        if location.is_dir():
            yield _Folder(location)
            return
        archive = stack.enter_context(zipfile.ZipFile(location))
        if not _class_folders(archive.namelist()):
            inner = [name for name in archive.namelist() if name.lower().endswith(".zip")]
            if len(inner) != 1:
                raise ValueError(
                    f"{location} holds neither {_alternatives()} folders nor exactly one inner zip"
                    f" (found {inner}): get the archive again"
                )
            archive = stack.enter_context(
                zipfile.ZipFile(stack.enter_context(archive.open(inner[0])))
            )
        yield archive


def find_manual_files(manual_dir: Path) -> Path | None:
    """Returns the directory itself if it holds class folders, else the one zip in it, if any.

    Raises:
        ValueError: if there are several zips to choose from.
    """
    if _class_folders(_Folder(manual_dir).namelist()):
        return manual_dir
    archives = sorted(path for path in manual_dir.rglob("*") if path.suffix.lower() == ".zip")
    if len(archives) > 1:
        raise ValueError(
            f"{manual_dir} holds several zips {[path.name for path in archives]}: leave one there"
        )
    return archives[0] if archives else None


def labelled_images(names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns (file name, class name) of every image, sorted.

    The class folders may lie at any depth, side by side in one folder. Hidden files and files
    that are not PNG or JPEG are left out.

    Raises:
        ValueError: if a class has no images, or the class folders occur in more than one place.
    """
    found = _class_folders(names)
    if len(found) > 1:
        raise ValueError(
            f"{_alternatives()} folders lie in several places {sorted(found)}: keep one of them"
        )
    images = next(iter(found.values()), [])
    for class_name in CLASS_NAMES:
        if not any(label == class_name for _, label in images):
            raise ValueError(
                f"no PNG or JPEG images in a folder {class_name}: the folder is missing or empty;"
                f" {', '.join(CLASS_NAMES)} must lie side by side"
            )
    return sorted(images)


def _class_folders(names: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Returns folder -> the (file name, class name) of the images in its class folders."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        path = PurePosixPath(name)
        hidden = path.name.startswith(".") or "__MACOSX" in path.parts  # copies that macOS adds
        if hidden or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.parent.name in CLASS_NAMES:
            found.setdefault(str(path.parent.parent), []).append((name, path.parent.name))
    return found


def _alternatives() -> str:
    return "/".join(CLASS_NAMES)
