"""Images and labels as arrays in an npz file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import InMemorySplit
from medmamba_jax.data.labels import as_labels
from medmamba_jax.data.sources.class_names import require_classes
from medmamba_jax.data.sources.source import Source

_LAYOUTS = (
    "{train,val,test}_images and _labels, as MedMNIST has them, or x and y, which are split by the"
    " seed"
)


def find_arrays(config: DataConfig) -> Source:
    """Reads the npz file `config.root` into memory; what is pickled is refused.

    It holds `train_images` (n, h, w) or (n, h, w, c), `train_labels`, and the same for val, which
    may be missing, and test; or `x` and `y`. Labels are integers (n,) or (n, 1), or of a
    multi-label set (n, K) of 1, 0 and NaN or -1 for not known. There may be `groups`
    (`train_groups`, ...), the patient of each image, and `class_names` (K,), which labels are
    indices into; without, classes are named by the integers that occur.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, lacks an array, or arrays do not fit one another.
    """
    path = _path(config)
    arrays = _arrays(path)
    if "x" in arrays:
        parts = {"": ("x", "y", "groups")}
    else:
        found = [name for name in ("train", "val", "test") if f"{name}_images" in arrays]
        parts = {n: (f"{n}_images", f"{n}_labels", f"{n}_groups") for n in found}
        if not {"train", "test"} <= parts.keys():
            raise ValueError(f"{path} holds {sorted(arrays)}: it must hold {_LAYOUTS}")
    images, names, labels, groups = [], [], [], []
    for image_key, label_key, group_key in parts.values():
        if label_key not in arrays:
            raise ValueError(f"{path} has {image_key} but no {label_key}: add the labels")
        found = _images(path, image_key, arrays[image_key])
        images += list(found)  # views, so that splits do not copy the pixels
        names += [f"{image_key}[{row}]" for row in range(len(found))]
        labels.append(_part_of(path, label_key, arrays[label_key], image_key, len(found)))
        if group_key in arrays:
            groups.append(_part_of(path, group_key, arrays[group_key], image_key, len(found)))
    if groups and len(groups) < len(parts):
        raise ValueError(f"{path} has groups for some splits only: add them for all")
    class_names, labels = _classes(path, names, _joined(path, labels), arrays.get("class_names"))
    return Source(
        name=path.stem,
        description=f"arrays of {path}",
        class_names=class_names,
        images=InMemorySplit(images, labels, np.concatenate(groups) if groups else None, names),
        assigned=None if "x" in arrays else np.array([name.partition("_")[0] for name in names]),
        task="multilabel" if labels.ndim == 2 else "multiclass",
    )


def _path(config: DataConfig) -> Path:
    if not config.root:
        raise ValueError("data.root is unset: set it to the npz file that holds the images")
    path = Path(config.root).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder: set data.root to the npz file in it")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: set data.root to the npz file")
    return path


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not an npz file, or is cut off ({path.stat().st_size} bytes): save it by"
            " numpy.savez, or get it again"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: _array(path, key, file) for key in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): get it again") from error


def _array(path: Path, key: str, file: np.lib.npyio.NpzFile) -> np.ndarray:
    try:
        array = file[key]
    except ValueError as error:  # of objects, or no array
        raise ValueError(
            f"{path}: {key} is no array of numbers or text ({error}). Pickled objects are not"
            " loaded: save arrays of one shape and dtype"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {key} is no array; save arrays by numpy.savez")
    return array


def _images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.ndim not in (3, 4) or images.dtype.kind not in "biuf" or not images.size:
        raise ValueError(
            f"{path}: {key} must be numbers (n, h, w) or (n, h, w, channels); got {images.dtype}"
            f" {images.shape}"
        )
    return images


def _part_of(path: Path, key: str, array: np.ndarray, image_key: str, count: int) -> np.ndarray:
    if array.ndim < 1 or len(array) != count:
        raise ValueError(
            f"{path}: {key} has the shape {array.shape}, but {image_key} holds {count} images:"
            " one of each belongs together"
        )
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _joined(path: Path, labels: list[np.ndarray]) -> np.ndarray:
    try:
        return as_labels(np.concatenate(labels))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _classes(
    path: Path, image_names: list[str], labels: np.ndarray, names: np.ndarray | None
) -> tuple[tuple[str, ...], np.ndarray]:
    if names is not None:
        names = tuple(names.astype(str).ravel().tolist())
    if labels.ndim == 2:
        names = names or tuple(map(str, range(labels.shape[1])))
        if len(names) != labels.shape[1]:
            raise ValueError(
                f"{path}: {len(names)} class_names, but labels of {labels.shape[1]} classes"
            )
        return names, labels
    wrong = np.flatnonzero((labels < 0) | (labels >= (np.inf if names is None else len(names))))
    if len(wrong):
        allowed = "0 or more" if names is None else f"an index into the {len(names)} class_names"
        raise ValueError(
            f"{path}: the label of {image_names[wrong[0]]} is {labels[wrong[0]]}; it must be"
            f" {allowed}"
        )
    if names is None:
        found, labels = np.unique(labels, return_inverse=True)
        names = tuple(map(str, found.tolist()))
        require_classes(names, str(path))
    return names, labels.astype(np.int32)
