"""Exports a predictor, once the file has been checked against the model."""

import dataclasses
import pathlib

import jax
import numpy as np

from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.errors import DataUnavailableError, MissingFileError, UserError
from medmamba_jax.exports.formats import FORMATS, as_split
from medmamba_jax.exports.meaning import NO_LICENCE, Meaning, Training
from medmamba_jax.files import expanded, require_writable, write_atomically
from medmamba_jax.predictor import Predictor

TOLERANCE = 1e-5
_CHECKED = 4  # images


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written, and how it was checked.

    Attributes:
        files: the file, and the JSON file beside it where the format has one.
        images: how many images it was checked on.
        unreadable: why other images could not be read, with their names.
        drawn: whether the program drew them.
        difference: the largest difference of a logit from the model's; relative to the largest
            logit if that is above 1.
    """

    files: tuple[pathlib.Path, ...]
    images: int
    unreadable: tuple[str, ...]
    drawn: bool
    difference: float


def export(
    predictor: Predictor,
    to: str,
    path: str | pathlib.Path,
    *,
    images: LabelledImages | None = None,
    training: Training | None = None,
    licence: str = NO_LICENCE,
) -> Exported:
    """Writes a model into a file that others can use, with all that they need to know of it.

    The content is checked before it is written: its logits of some images must equal the model's to
    1e-5 in float32. Nothing is written if they do not.

    Args:
        predictor: the model.
        to: a name in `FORMATS`: "safetensors", "torch", "stablehlo" or "onnx".
        path: the file, which is replaced if it exists, as is the JSON file beside it.
        images: images to check with. The first four that can be read are taken. If there is none,
            the program draws noise.
        training: how the model was trained.
        licence: under which terms the weights may be used.

    Raises:
        FileNotFoundError: the path's folder does not exist.
        ImportError: the format needs a package that is not installed.
        OSError: the file cannot be written.
        UserError: there is no such format, the path has another ending, or the logits differ.
    """
    path = expanded(path)
    check_target(to, path)
    row = FORMATS[to]
    real, unreadable = _pixels(images, predictor.preprocessing) if images else ([], [])
    pixels = np.stack(real) if real else _noise(predictor.preprocessing)
    meaning = Meaning.of(predictor, training, licence)
    with jax.default_matmul_precision("highest"):
        content = row.encode(predictor, meaning, path)
        model = dataclasses.replace(predictor.model, compute_dtype="float32")
        expected = dataclasses.replace(predictor, model=model).logits(as_split(pixels))
        difference = _difference(row.run(content, pixels, meaning), expected)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path} is not written: its logits differ by {difference:.1e} from those of the model"
            f" ({TOLERANCE:.0e} is allowed). Export in another format ({', '.join(FORMATS)}), and"
            " report this as a fault"
        )
    files = files_of(to, path)
    for old in files:  # so that a kill leaves no weights beside the meaning of others
        old.unlink(missing_ok=True)
    write_atomically(path, content)
    if row.json_beside:
        write_atomically(files[1], meaning.to_json())
    return Exported(files, len(pixels), tuple(unreadable), not real, difference)


def files_of(to: str, path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the files that `export` writes: the path, and for some formats `<path>.json`."""
    beside = path.with_name(path.name + ".json")
    return (path, beside) if FORMATS[to].json_beside else (path,)


def check_target(to: str, path: pathlib.Path) -> None:
    """Checks what can be checked before a model is loaded; raises as `export`."""
    if to not in FORMATS:
        raise UserError(f"there is no format {to!r}; there are {', '.join(FORMATS)}")
    endings = FORMATS[to].endings
    if path.suffix not in endings:
        raise UserError(f"{path} must end in {' or '.join(endings)} for the format {to}")
    FORMATS[to].require(path)
    if not path.parent.is_dir():
        raise MissingFileError(f"{path.parent} is not a folder; make it first")
    require_writable(path.parent)


def _pixels(
    images: LabelledImages, preprocessing: Preprocessing
) -> tuple[list[np.ndarray], list[str]]:
    """Returns images as a batch holds them, uint8 (h, w, c), and why others cannot be read."""
    found: list[np.ndarray] = []
    unreadable: list[str] = []
    for row in range(len(images)):
        try:
            found.append(preprocessing.resize(preprocessing.decode(images.read(row))))
        except (OSError, ValueError, DataUnavailableError) as error:
            unreadable.append(f"{images.describe(row)}: {error}")
        if len(found) == _CHECKED:
            break
    return found, unreadable


def _noise(preprocessing: Preprocessing) -> np.ndarray:
    """Returns images that the program draws, uint8 (n, h, w, c)."""
    shape = (_CHECKED, *preprocessing.image_size, preprocessing.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(1, np.abs(expected).max()))
