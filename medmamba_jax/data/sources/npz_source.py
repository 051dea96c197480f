"""Images and labels from the arrays of an npz file."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.free_memory import available_memory
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.labels import as_labels
from medmamba_jax.data.npz_file import StoredArray, array_names, stored_array
from medmamba_jax.data.sources.source import Source
from medmamba_jax.data.split_names import names_of_splits
from medmamba_jax.errors import MissingFileError, UserError

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
        raise MissingFileError(f"no file {path}: set data.path to the npz file")
    with _opened(path) as npz:
        there = array_names(npz)
        parts = _parts(there)
        arrays, names, labels, groups = [], [], [], []
        for image_key, label_key, group_key in parts.values():
            if label_key not in there:
                raise UserError(f"it has {image_key} but no {label_key}: add the labels")
            array = _image_array(npz, image_key)
            arrays.append(array)
            names += [f"{image_key}[{row}]" for row in range(array.shape[0])]
            values = stored_array(npz, label_key).load_for(array)
            # NumPy would join uint64 with integers of a sign as floating point numbers.
            labels.append(values.astype(np.int64) if values.dtype.kind == "u" else values)
            if group_key in there:
                groups.append(_text(stored_array(npz, group_key).load_for(array), group_key))
        if groups and len(groups) < len(parts):
            raise UserError("it has groups for some splits only: add them for all")
        saved = _saved_class_names(npz) if "class_names" in there else None
        class_names, all_labels = _classes(names, as_labels(np.concatenate(labels)), saved)
        return LabelledImages(
            # Views, so that splits do not copy the pixels.
            [image for array in arrays for image in array.load(most=available_memory())],
            all_labels,
            class_names,
            names=tuple(names),
            groups=np.concatenate(groups) if groups else None,
            splits=None
            if "" in parts
            else np.repeat([*parts], [array.shape[0] for array in arrays]),
            name=path.stem,
            description=f"arrays of {path}",
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens the file, and names it in every error."""
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not an npz file, or is cut off ({path.stat().st_size} bytes): save it by"
            " numpy.savez, or get it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): get it again") from error
    except (ValueError, RuntimeError) as error:  # zipfile raises RuntimeError for encryption
        raise UserError(f"{path}: {error}") from error


def _parts(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Returns split, "" without any -> names of its arrays of images, labels and groups."""
    if "x" in names:
        if "train_images" in names:
            raise UserError(
                "it holds x, which is split by the seed, and train_images, which is a split: save"
                " only those that are meant"
            )
        return {"": ("x", "y", "groups")}
    prefixes = names_of_splits(
        [name.removesuffix("_images") for name in names if name.endswith("_images")],
        *("it", "_images"),
    )
    if "train" not in prefixes or len(prefixes) == 1:
        raise UserError(f"it holds {sorted(names)}, but must hold {_LAYOUTS}")
    return {
        split: (f"{prefix}_images", f"{prefix}_labels", f"{prefix}_groups")
        for split, prefix in prefixes.items()
    }


def _image_array(npz: zipfile.ZipFile, name: str) -> StoredArray:
    array = stored_array(npz, name)
    if len(array.shape) not in (3, 4) or array.dtype.kind not in "biuf" or not array.nbytes:
        raise UserError(f"{name} must be numbers (n, h, w) or (n, h, w, channels); got {array}")
    return array


def _classes(
    image_names: list[str], labels: np.ndarray, names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    if labels.ndim == 2:
        names = names or tuple(map(str, range(labels.shape[1])))
        if len(names) != labels.shape[1]:
            raise UserError(f"{len(names)} class_names, but labels of {labels.shape[1]} classes")
        return names, labels
    wrong = np.flatnonzero((labels < 0) | (labels >= (np.inf if names is None else len(names))))
    if len(wrong):
        allowed = "0 or more" if names is None else f"an index into the {len(names)} class_names"
        raise UserError(
            f"the label of {image_names[wrong[0]]} is {labels[wrong[0]]}; it must be {allowed}"
        )
    if names is None:
        found, labels = np.unique(labels, return_inverse=True)
        names = tuple(map(str, found.tolist()))
    return names, labels.astype(np.int32)


def _saved_class_names(npz: zipfile.ZipFile) -> tuple[str, ...]:
    array = stored_array(npz, "class_names")
    names = array.load()
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(f"class_names must be text (classes,); got {array}")
    return tuple(_text(names, "class_names").tolist())


def _text(values: np.ndarray, what: str) -> np.ndarray:
    """Decodes bytes; returns other values unchanged."""
    try:
        return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    except UnicodeDecodeError as error:
        raise UserError(f"{what} are not UTF-8: save them as text") from error


NPZ = Source(
    points_at="an npz file of arrays (.npz)",
    recognises=lambda config: Path(config.path).suffix.lower() == ".npz",
    find=find_arrays,
)
