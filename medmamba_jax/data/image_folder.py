"""Images in one folder per class."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset, Example, digest
from medmamba_jax.data.decoding import IMAGE_SUFFIXES, open_image
from medmamba_jax.data.splitting import split_off, stratified_split

_SPLITS = ("train", "val", "test")
_VAL_FOLDERS = ("val", "validation", "valid")
_LISTED_FILES = 5

_Labelled = list[tuple[Path, str]]  # image file, class name


class FileSplit:
    """Image files below a root and their labels; a file is read when its index is asked for."""

    groups = None  # folders name no patients

    def __init__(self, root: Path, files: Sequence[Path], labels: Sequence[int]):
        self.root = root
        self.files = tuple(files)
        self.labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        return {"image": self.files[index].read_bytes(), "label": int(self.labels[index])}

    def describe(self, index: int) -> str:
        return str(self.files[index])

    def digest(self) -> str:
        """Identifies images by their path below the root, which may move, and their size."""
        return digest(
            self.labels,
            (
                f"{file.stat().st_size} {file.relative_to(self.root).as_posix()}".encode()
                for file in self.files
            ),
        )


def build_image_folder(config: DataConfig) -> Dataset:
    """Reads PNG and JPEG files from `<root>/{train,val,test}/<class>/` or `<root>/<class>/`.

    The first layout is taken when `<root>/train` exists. `val` may also be called `validation` or
    `valid`, and is split off train by `config.split_seed` when it is missing: as many images as
    `config.val_fraction` asks for, of train and test together. Test images are never taken from a
    train folder. The second layout is split into three by the seed. Both splits are stratified.

    Classes are the folder names in sorted order. Hidden files and files with other endings are
    skipped and counted in the log. Every file is decoded once here, so that a damaged one stops
    the run at its start and not hours later.

    Raises:
        FileNotFoundError: if `config.root` is not a directory.
        ValueError: if `config.root` is unset, a split folder is missing or empty, there are fewer
            than two classes, val or test has a class that train lacks, or a file cannot be
            decoded and `config.allow_unreadable` is False.
    """
    if not config.root:
        raise ValueError("data.root is unset: set it to the folder that holds the images")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no directory {root}: set data.root to the folder of the images")
    folders = _split_folders(root)
    found = {name: _labelled_files(folder) for name, folder in folders.items()}
    for name, files in found.items():
        if not files:
            raise ValueError(
                f"no PNG or JPEG files in the class folders of {folders[name]}"
                f"{_where_images_are(folders[name])}"
            )
    found = _without_unreadable(found, allowed=config.allow_unreadable)
    class_names = _class_names(found, root)
    labelled = {name: _file_split(root, files, class_names) for name, files in found.items()}
    if "train" not in found:
        splits = _split_all(labelled["all"], config)
    elif "val" not in found:
        splits = _split_val_off(labelled, config)
    else:
        splits = {name: labelled[name] for name in _SPLITS}
    return Dataset(
        name=root.resolve().name,
        description=f"images of the folder {root}",
        class_names=class_names,
        splits=splits,
        synthetic=False,
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """Returns split name -> folder; the single name "all" if the root holds class folders."""
    if not (root / "train").is_dir():
        for name in (*_VAL_FOLDERS, "test"):
            if (root / name).is_dir():
                raise ValueError(
                    f"{root} has a {name} folder but no train folder: add train/<class>/"
                )
        return {"all": root}
    folders = {"train": root / "train"}
    val_names = [name for name in _VAL_FOLDERS if (root / name).is_dir()]
    if len(val_names) > 1:
        raise ValueError(f"{root} has the validation folders {val_names}: keep one of them")
    if val_names:
        folders["val"] = root / val_names[0]
    if not (root / "test").is_dir():
        raise ValueError(
            f"{root} has a train folder but no test folder: add test/<class>/, or put the class"
            " folders directly into the root to have all images split by the seed"
        )
    folders["test"] = root / "test"
    return folders


def _where_images_are(folder: Path) -> str:
    """A hint for a root that is a level too deep, or too high."""
    here = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    if here:
        return f", but {len(here)} directly in it: is data.root = {folder.parent} meant?"
    for path in sorted(folder.glob("*/*/*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return f", but in those of {path.parent.parent}: is that what data.root should be?"
    return ""


def _labelled_files(folder: Path) -> _Labelled:
    files = []
    skipped = 0
    for class_folder in sorted(folder.iterdir()):
        if not class_folder.is_dir() or class_folder.name.startswith("."):
            skipped += 1
            continue
        for path in sorted(class_folder.iterdir()):
            visible = not path.name.startswith(".")
            if visible and path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                files.append((path, class_folder.name))
            else:
                skipped += 1
    if skipped and files:
        logging.warning("%s: skipped %d entries that are not PNG or JPEG files", folder, skipped)
    return files


def _without_unreadable(found: Mapping[str, _Labelled], *, allowed: bool) -> dict[str, _Labelled]:
    paths = [path for files in found.values() for path, _ in files]
    with ThreadPoolExecutor() as pool:
        problems = dict(zip(paths, pool.map(_problem, paths), strict=True))
    unreadable = [f"{path} ({problem})" for path, problem in problems.items() if problem]
    if unreadable:
        listed = "; ".join(unreadable[:_LISTED_FILES])
        summary = f"{len(unreadable)} of {len(paths)} image files cannot be read: {listed}"
        if len(unreadable) > _LISTED_FILES:
            summary += "; ..."
        if not allowed:
            raise ValueError(
                f"{summary}. Replace or remove them, or set data.allow_unreadable to drop them"
            )
        logging.warning("%s. Dropped, as data.allow_unreadable is set", summary)
    return {
        name: [(path, label) for path, label in files if not problems[path]]
        for name, files in found.items()
    }


def _problem(path: Path) -> str | None:
    try:
        open_image(path.read_bytes())
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _class_names(found: Mapping[str, _Labelled], root: Path) -> tuple[str, ...]:
    names = {split: {label for _, label in files} for split, files in found.items()}
    known = names.get("train", names.get("all"))
    for split in names:
        if unknown := sorted(names[split] - known):
            raise ValueError(
                f"the {split} folder of {root} has the classes {unknown}, which its train folder"
                f" lacks; train has {sorted(known)}"
            )
    if len(known) < 2:
        raise ValueError(
            f"{root} has images of {len(known)} class(es) {sorted(known)}; two or more are needed,"
            " as <class>/ or {train,val,test}/<class>/ folders of PNG or JPEG files"
        )
    return tuple(sorted(known))


def _file_split(root: Path, files: _Labelled, class_names: tuple[str, ...]) -> FileSplit:
    index = {name: i for i, name in enumerate(class_names)}
    return FileSplit(root, [path for path, _ in files], [index[label] for _, label in files])


def _subset(split: FileSplit, rows: np.ndarray) -> FileSplit:
    return FileSplit(split.root, [split.files[row] for row in rows], split.labels[rows])


def _split_all(everything: FileSplit, config: DataConfig) -> dict[str, FileSplit]:
    rows = stratified_split(
        everything.labels,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )
    return {name: _subset(everything, rows[name]) for name in _SPLITS}


def _split_val_off(labelled: Mapping[str, FileSplit], config: DataConfig) -> dict[str, FileSplit]:
    train, test = labelled["train"], labelled["test"]
    count = round(config.val_fraction * (len(train) + len(test)))
    kept, val = split_off(train.labels, count, seed=config.split_seed, name="val")
    logging.warning(
        "no val folder: split %d of %d train images off, seed %d",
        count,
        len(train),
        config.split_seed,
    )
    return {"train": _subset(train, kept), "val": _subset(train, val), "test": test}
