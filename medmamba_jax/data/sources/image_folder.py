"""Image files in a folder for each class."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.images.formats import IMAGE_SUFFIXES, is_image_file
from medmamba_jax.data.labelled_images import LabelledImages, labelled_files
from medmamba_jax.data.naming import listed
from medmamba_jax.data.sources.class_names import numbered
from medmamba_jax.data.sources.links import note_links
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.split_names import names_of_splits, split_named
from medmamba_jax.data.texts import printable
from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded

_OF_SYSTEMS = ("__MACOSX", "@eaDir")  # folders that archives of macOS and Synology's disks add


def find_image_folder(config: DataConfig) -> LabelledImages:
    """Finds image files in `<path>/{train,val,test}/<class>/` or `<path>/<class>/`.

    The first layout applies if the folder has folders of these names. `val` may also be called
    `validation` or `valid`, and either val or test may be missing. The class folders give the names
    of the classes, which are sorted as text, but runs of digits by value. Hidden files and files
    that are not images are skipped, and the log gives their number. A link counts as an image by
    its ending, even if nothing is where it leads.

    Raises:
        UserError: a split folder is missing or has no images, two classes differ only by case,
            images lie deeper than in the class folders, or the pattern of the configuration finds
            no patient.
    """
    root = expanded(config.path)
    folders = _split_folders(root)
    names, labels, splits = [], [], []
    for split, folder in folders.items():
        files = _labelled_files(folder, is_split=split != "all")
        names += [path.relative_to(root).as_posix() for path, _ in files]
        labels += [label for _, label in files]
        splits += [split] * len(files)
    class_names, numbers = numbered(labels, str(root))
    note_links(root, names)
    return labelled_files(
        root,
        names,
        numbers,
        class_names,
        groups=_groups(names, config.folder.group_pattern),
        splits=np.array(splits) if "train" in folders else None,
        name=root.resolve().name,
        description=f"images of the folder {root}",
    )


def _groups(names: list[str], pattern: str) -> np.ndarray | None:
    if not pattern:
        return None
    matches = [re.search(pattern, name) for name in names]
    for name, match in zip(names, matches, strict=True):
        if match is None or not match[1]:
            raise UserError(
                f"data.folder.group_pattern={pattern!r} finds no patient in {name}: change the"
                " pattern so that it fits the path of every image below the folder"
            )
    return np.array([match[1] for match in matches if match is not None])


def _split_folders(root: Path) -> dict[str, Path]:
    """Returns split name -> folder; {"all": root} if the root holds the class folders itself."""
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    folders = {split: root / name for split, name in names_of_splits(found, str(root)).items()}
    if not folders:
        return {"all": root}
    lacking = "train" if "train" not in folders else "val or test" if len(folders) == 1 else ""
    if lacking:
        there = ", ".join(path.name for path in folders.values())
        raise UserError(
            f"{root} has the folder {there}, but none for {lacking}: add {lacking.split()[0]}"
            "/<class>/, or put the class folders directly into the root to have all images split"
            " by the seed"
        )
    others = [name for name in found if not is_hidden(name) and not split_named(name)]
    if others:
        logging.warning(
            "left out the folders %s of %s, which are no train, val or test: rename what should"
            " be one",
            listed(others),
            root,
        )
    return folders


def _where_images_are(folder: Path, deeper: Sequence[Path], *, is_split: bool) -> str:
    """Returns a hint if images lie a level too high or too deep, else ""."""
    here = [path for path in folder.iterdir() if is_image(path)]
    if here:
        one_class = f", or, if this is one class of several, set data.path to {folder.parent}"
        return (
            f", but {len(here)} directly in it: give each class a folder"
            f"{' in it' if is_split else one_class}"
        )
    above = {path.parent.parent for path in deeper}
    if len(above) == 1 and not is_split:
        return f", but in those of {above.pop()}: is that what data.path should be?"
    return f", but {_a_level_deeper(folder, deeper)}" if deeper else ""


def _a_level_deeper(folder: Path, deeper: Sequence[Path]) -> str:
    return (
        f"a level deeper, in {min(deeper).parent.relative_to(folder)} and so on: put them into"
        " <class>/ or {train,val,test}/<class>/, or name them in a table (data.path=TABLE.csv)"
    )


def _deeper_images(folder: Path) -> list[Path]:
    """Returns the images in the folders of class folders, where no image is looked for."""
    return [
        path
        for path in folder.glob("*/*/**/*")
        if not any(map(is_hidden, path.relative_to(folder).parts)) and is_image(path)
    ]


def is_hidden(name: str) -> bool:
    """Whether a file or a folder of this name is hidden, or a system has added it."""
    return name.startswith(".") or name in _OF_SYSTEMS


def is_image(path: Path) -> bool:
    """Whether a path is an image file, or a broken link with the ending of one."""
    if path.is_file():
        return is_image_file(path)
    return _is_broken(path) and path.name.lower().endswith(IMAGE_SUFFIXES)


def _is_broken(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _labelled_files(folder: Path, *, is_split: bool) -> list[tuple[Path, str]]:
    """Returns the images in the class folders of a folder, and the name of the class of each.

    Raises:
        UserError: there are none, some lie deeper, or two class folders have the same name.
    """
    files: list[tuple[Path, str]] = []
    skipped: list[Path] = []
    empty: list[Path] = []
    spelled: dict[str, str] = {}
    for class_folder in sorted(folder.iterdir()):
        if not class_folder.is_dir() or is_hidden(class_folder.name):
            skipped.append(class_folder)
            continue
        name = printable(class_folder.name)
        if name in spelled:
            raise UserError(
                f"{folder} has two folders {name!r}, whose accents are stored differently (Unicode"
                " NFC and NFD): put the images into one of them"
            )
        spelled[name] = class_folder.name
        before = len(files)
        for path in sorted(class_folder.iterdir()):
            if not is_hidden(path.name) and is_image(path):
                files.append((path, name))
            else:
                skipped.append(path)
        if len(files) == before:
            empty.append(class_folder)
    deeper = _deeper_images(folder)
    if not files:
        where = _where_images_are(folder, deeper, is_split=is_split)
        raise UserError(f"no image files in the class folders of {folder}{where}")
    if deeper:
        raise UserError(
            f"{len(deeper)} images of {folder} are not in the class folders, but"
            f" {_a_level_deeper(folder, deeper)}; or remove the folders that are not wanted"
        )
    for class_folder in empty:
        logging.warning("%s holds no images and is not a class", class_folder)
    if skipped:
        logging.warning(
            "%s: skipped %d entries that are no images: %s",
            folder,
            len(skipped),
            by_ending(skipped, folder),
        )
    return files


def by_ending(paths: Sequence[Path], folder: Path) -> str:
    """Returns the number and an example of each ending, the most frequent first."""
    examples: dict[str, list[str]] = {}
    for path in paths:
        kind = path.suffix.lower() or "without an ending"
        kind = "hidden" if is_hidden(path.name) else "folder" if path.is_dir() else kind
        kind = "broken link" if _is_broken(path) else kind
        examples.setdefault(kind, []).append(printable(path.relative_to(folder).as_posix()))
    most = sorted(examples.items(), key=lambda item: -len(item[1]))
    return listed([f"{len(names)} {kind} ({names[0]})" for kind, names in most])


IMAGE_FOLDER = Source(
    points_at="a folder of images",
    recognises=lambda config: config.path != "" and expanded(config.path).is_dir(),
    find=find_image_folder,
)
