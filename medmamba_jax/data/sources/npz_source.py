"""Images and labels from the arrays of an npz file."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.labels import as_labels
from medmamba_jax.data.sources.class_names import require_classes
from medmamba_jax.data.sources.npy_header import NpyHeader, read_npy_header
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.split_names import SPLITS, split_named
from medmamba_jax.errors import UserError

_LAYOUTS = (
    "{train,val,test}_images and _labels, as MedMNIST has them, or x and y, which are split by the"
    " seed"
)


def find_arrays(config: DataConfig) -> LabelledImages:
    """Reads the npz file `config.path` into memory. It does not accept pickled arrays.

    The file holds `train_images` (n, h, w) or (n, h, w, c), `train_labels`, and the same arrays for
    val (or valid, or validation) and test. Either val or test may be missing. Without splits, the
    arrays are `x` and `y`. Labels are integers (n,) or (n, 1). In a multi-label set they are
    (n, K): 1, 0, and NaN or -1 for unknown.

    Two more arrays are optional. `groups` (`train_groups`, ...) holds the patient of each image.
    `class_names` (K,) holds text, and labels are indices into it. Without it, the integers in the
    labels are the names of the classes.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is damaged, lacks an array, or holds arrays that do not fit together.
    """
    path = Path(config.path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: set data.path to the npz file")
    with _opened(path) as file:
        if "x" in file.files:
            parts = {"": ("x", "y", "groups")}
        else:
            parts = _splits(path, file.files)
            if "train" not in parts or len(parts) == 1:
                raise UserError(f"{path} holds {sorted(file.files)}: it must hold {_LAYOUTS}")
        arrays = _arrays(path, file, parts.values())
    images, names, splits, labels, groups = [], [], [], [], []
    for split, (image_key, label_key, group_key) in parts.items():
        images += list(arrays[image_key])  # views, so that splits do not copy the pixels
        names += [f"{image_key}[{row}]" for row in range(len(arrays[image_key]))]
        splits += [split] * len(arrays[image_key])
        labels.append(_without_column(arrays[label_key]))
        if group_key in arrays:
            groups.append(_without_column(arrays[group_key]))
    if groups and len(groups) < len(parts):
        raise UserError(f"{path} has groups for some splits only: add them for all")
    class_names, all_labels = _classes(
        path, names, _joined(path, labels), arrays.get("class_names")
    )
    return LabelledImages(
        images,
        all_labels,
        class_names,
        names=tuple(names),
        groups=np.concatenate(groups) if groups else None,
        splits=None if "x" in arrays else np.array(splits),
        name=path.stem,
        description=f"arrays of {path}",
    )


def _splits(path: Path, keys: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Returns split -> names of its arrays of images, labels and groups."""
    prefixes: dict[str, str] = {}
    for prefix in (key.removesuffix("_images") for key in keys if key.endswith("_images")):
        split = split_named(prefix)
        if split in prefixes:
            raise UserError(
                f"{path} has both {prefixes[split]}_images and {prefix}_images, which are {split}:"
                " keep one of them"
            )
        if split is not None:
            prefixes[split] = prefix
    return {
        split: (
            f"{prefixes[split]}_images",
            f"{prefixes[split]}_labels",
            f"{prefixes[split]}_groups",
        )
        for split in SPLITS
        if split in prefixes
    }


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not an npz file, or is cut off ({path.stat().st_size} bytes): save it by"
            " numpy.savez, or get it again"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): get it again") from error


def _arrays(
    path: Path, file: np.lib.npyio.NpzFile, parts: Iterable[tuple[str, str, str]]
) -> dict[str, np.ndarray]:
    """Checks that the headers of all parts fit together, and then loads the arrays."""
    keys = []
    for image_key, label_key, group_key in parts:
        if label_key not in file.files:
            raise UserError(f"{path} has {image_key} but no {label_key}: add the labels")
        images = _header(path, file, image_key)
        if len(images.shape) not in (3, 4) or images.dtype.kind not in "biuf" or not images.nbytes:
            raise UserError(
                f"{path}: {image_key} must be numbers (n, h, w) or (n, h, w, channels); got"
                f" {images}"
            )
        keys.append(image_key)
        for key in (label_key, group_key):
            if key in file.files:
                _check_part(path, _header(path, file, key), images)
                keys.append(key)
    if "class_names" in file.files:
        names = _header(path, file, "class_names")
        _check_size(path, names)
        if len(names.shape) != 1 or names.dtype.kind not in "US":
            raise UserError(f"{path}: class_names must be text (classes,); got {names}")
        keys.append("class_names")
    return {key: _array(path, file, key) for key in keys}


def _array(path: Path, file: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return file[key]
    except (ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: {key} cannot be loaded ({reason}): get the file again, or, if it is larger"
            " than the memory, save its images as files"
        ) from error


def _header(path: Path, file: np.lib.npyio.NpzFile, key: str) -> NpyHeader:
    assert file.zip is not None  # it is open
    try:
        header = read_npy_header(file.zip, key)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if header.dtype.hasobject:
        raise UserError(
            f"{path}: {key} is no array of numbers or text, but of objects. Pickled objects are not"
            " loaded: save arrays of one shape and dtype"
        )
    return header


def _check_part(path: Path, part: NpyHeader, images: NpyHeader) -> None:
    if part.shape[:1] != images.shape[:1]:
        raise UserError(
            f"{path}: {part.name} has the shape {part.shape}, but {images.name} holds"
            f" {images.shape[0]} images: one of each belongs together"
        )
    _check_size(path, part)


def _check_size(path: Path, header: NpyHeader) -> None:
    try:
        header.require_small()
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _without_column(array: np.ndarray) -> np.ndarray:
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _joined(path: Path, labels: list[np.ndarray]) -> np.ndarray:
    try:
        return as_labels(np.concatenate(labels))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _classes(
    path: Path, image_names: list[str], labels: np.ndarray, saved_names: np.ndarray | None
) -> tuple[tuple[str, ...], np.ndarray]:
    names = None if saved_names is None else _as_text(path, saved_names)
    if labels.ndim == 2:
        names = names or tuple(map(str, range(labels.shape[1])))
        if len(names) != labels.shape[1]:
            raise UserError(
                f"{path}: {len(names)} class_names, but labels of {labels.shape[1]} classes"
            )
        return names, labels
    wrong = np.flatnonzero((labels < 0) | (labels >= (np.inf if names is None else len(names))))
    if len(wrong):
        allowed = "0 or more" if names is None else f"an index into the {len(names)} class_names"
        raise UserError(
            f"{path}: the label of {image_names[wrong[0]]} is {labels[wrong[0]]}; it must be"
            f" {allowed}"
        )
    if names is None:
        found, labels = np.unique(labels, return_inverse=True)
        names = tuple(map(str, found.tolist()))
        require_classes(names, str(path))
    return names, labels.astype(np.int32)


def _as_text(path: Path, names: np.ndarray) -> tuple[str, ...]:
    try:
        return tuple(
            (np.char.decode(names, "utf-8") if names.dtype.kind == "S" else names).tolist()
        )
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: class_names are not UTF-8: save them as text") from error


NPZ = Source(
    points_at="an npz file of arrays (.npz)",
    recognises=lambda config: Path(config.path).suffix.lower() == ".npz",
    find=find_arrays,
)
