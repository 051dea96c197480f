"""Classifies image files, some of which may be unreadable, and writes what the model says."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from medmamba_jax.assessment.prediction_sets import SetThresholds, members
from medmamba_jax.data.csv_table import csv_text
from medmamba_jax.data.images.decoding import parsed
from medmamba_jax.data.images.preprocessing import ALL_FRAMES, Preprocessing
from medmamba_jax.data.labelled_images import Files, LabelledImages
from medmamba_jax.data.sources.frames import all_frames
from medmamba_jax.data.texts import printable
from medmamba_jax.errors import NonFiniteLossError, UserError
from medmamba_jax.files import require_free, require_writable, write_atomically
from medmamba_jax.metrics import probabilities
from medmamba_jax.predictor import Predictor

UNDECIDED = "undecided"
_NAMED = 8  # classes that a sentence names


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of image files.

    Attributes:
        task: "multiclass" or "multilabel", see `Predictor.task`.
        class_names: K names.
        names: the path of each image, and its frame if each frame is an image (n).
        probabilities: float64 (n, K).
        unreadable: path -> why the file was not classified.
        sets: which classes are in the prediction set of each image, bool (n, K); None if no sets
            were asked for.
    """

    task: str
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    probabilities: np.ndarray
    unreadable: dict[str, str]
    sets: np.ndarray | None = None

    @classmethod
    def none(cls, task: str, class_names: tuple[str, ...]) -> "Predictions":
        """Returns the predictions of no image."""
        return cls(task, class_names, (), np.zeros((0, len(class_names))), {})

    def decided(self, threshold: float | None = None, abstain_below: float = 0.0) -> list[str]:
        """Returns the predicted class of each image.

        For a multi-label model it returns all predicted classes, joined by "|".

        Args:
            threshold: of two classes, the probability from which on an image is of the second one;
                of a multi-label model, the probability from which on it shows a class. None takes
                the likeliest class, and in a multi-label model what exceeds 0.5.
            abstain_below: if no class, or for multi-label no decision, reaches this probability,
                the answer is "undecided".

        Raises:
            UserError: a number is not between 0 and 1, or more than two classes have a threshold.
        """
        for name, value in (("threshold", threshold), ("abstain_below", abstain_below)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} must lie between 0 and 1; got {value}")
        p, names = self.probabilities, self.class_names
        if self.task == "multilabel":
            shown = p > 0.5 if threshold is None else p >= threshold
            answers = [
                "|".join(n for n, yes in zip(names, row, strict=True) if yes) for row in shown
            ]
            sure = np.where(shown, p, 1 - p).min(1)
        else:
            chosen = p.argmax(1)
            if threshold is not None:
                if len(names) != 2:
                    raise UserError(
                        f"a threshold is for two classes or a multi-label model, and this model has"
                        f" {len(names)} classes: use abstain_below (--abstain-below)"
                    )
                chosen = (p[:, 1] >= threshold).astype(int)
            answers = [names[k] for k in chosen]
            sure = p[np.arange(len(p)), chosen]
        return [a if s >= abstain_below else UNDECIDED for a, s in zip(answers, sure, strict=True)]


def predict_files(
    predictor: Predictor,
    paths: Sequence[pathlib.Path],
    *,
    mirror: bool = False,
    calibrated: bool = False,
    level: float | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Predictions:
    """Classifies image files. A file that cannot be read does not stop the others.

    The images pass the same batches as in evaluation, so that the numbers of a set are equal to
    those of `medmamba evaluate`.

    Args:
        predictor: the trained model.
        paths: the files.
        mirror: whether to average the probabilities with those of the mirror image.
        calibrated: whether to divide the logits by the temperature of the predictor's calibration.
        level: the level of prediction sets, such as 0.9. They are made from the probabilities
            without temperature and mirror image, as on the validation images.
        progress: is called each time an image is decoded.

    Raises:
        DataUnavailableError: the package that reads such files is not installed.
        NonFiniteLossError: an output of the model is NaN or infinite.
        UserError: there is no file, or no calibration with what was asked for.
    """
    temperature = predictor.temperature(calibrated)
    thresholds = None if level is None else set_thresholds(predictor, level)
    if not paths:
        raise UserError("there is no image to classify: give a file or a folder")
    images, unreadable = _images(paths, predictor.preprocessing)
    table = np.zeros((0, len(predictor.class_names)))
    sets = None if thresholds is None else np.zeros(table.shape, bool)
    if len(images):
        parts = []
        for flipped in (False, True) if mirror else (False,):
            seen = _Tolerant(images, predictor.preprocessing, flipped, progress)
            logits = predictor.logits(
                dataclasses.replace(images, images=seen, places=np.arange(len(images)))
            )
            parts.append(probabilities(logits / temperature, predictor.task))
            if thresholds is not None and not flipped:
                sets = members(probabilities(logits, predictor.task), thresholds)
        unreadable |= {images.names[place]: text for place, text in seen.problems.items()}
        kept = np.array([place not in seen.problems for place in range(len(images))])
        images, table = images.take(np.flatnonzero(kept)), np.mean(parts, axis=0)[kept]
        sets = None if sets is None else sets[kept]
    if not np.isfinite(table).all():
        row = int(np.isfinite(table).all(1).argmin())
        raise NonFiniteLossError(f"the model's outputs for {images.names[row]} are not finite")
    return Predictions(predictor.task, predictor.class_names, images.names, table, unreadable, sets)


def what_it_knows(predictor: Predictor) -> str:
    """Says that a model knows only its classes: it does not notice an image of another kind."""
    names = predictor.class_names
    known = ", ".join(names) if len(names) <= _NAMED else f"its {len(names)} classes"
    if predictor.task == "multilabel":
        return f"the model knows nothing but {known}, and judges every image by these"
    return f"the model knows nothing but {known}, and gives every image one of these names"


def set_thresholds(predictor: Predictor, level: float) -> SetThresholds:
    """Returns what makes the prediction sets of a level.

    Raises:
        UserError: the predictor has no calibration, or none for this level.
    """
    predictor.temperature(calibrated=True)  # the error says what to do
    assert predictor.calibration is not None
    sets = predictor.calibration.sets
    if str(level) not in sets:
        has = (
            f"has those of {', '.join(sets)}" if sets else "has none, as its labels are multilabel"
        )
        raise UserError(f"there are no prediction sets of level {level}: the model {has}")
    return sets[str(level)]


def _images(
    paths: Sequence[pathlib.Path], preprocessing: Preprocessing
) -> tuple[LabelledImages, dict[str, str]]:
    """Returns the images; and the files whose frames cannot be counted, if each is an image."""
    names = tuple(map(str, paths))
    problems: dict[str, str] = {}
    files = LabelledImages(
        Files(pathlib.Path(), names), np.zeros(len(names), np.int32), names=names
    )
    if preprocessing.frame != ALL_FRAMES:
        return files, problems
    for row, path in enumerate(paths):
        try:
            parsed(path.read_bytes()).count_frames()
        except (OSError, UserError) as error:
            problems[names[row]] = _reason(error)
    readable = [row for row, name in enumerate(names) if name not in problems]
    files = files.take(np.array(readable, int))
    if readable:
        files = all_frames(files, preprocessing.window, preprocessing.max_pixels)
    return files, problems


class _Tolerant:
    """Decodes images; one that cannot be decoded is black, and its problem is kept."""

    def __init__(
        self,
        images: LabelledImages,
        preprocessing: Preprocessing,
        flipped: bool,
        progress: Callable[[], object],
    ):
        self._images = images
        self._preprocessing = preprocessing
        self._flipped = flipped
        self._progress = progress
        self.problems: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, place: int) -> np.ndarray:
        found = _decoded_or_reason(self._images, place, self._preprocessing)
        if isinstance(found, str):
            self.problems[place] = found
            pixels = np.zeros((1, 1, self._preprocessing.channels), np.uint8)
        else:
            pixels = found
        self._progress()
        return np.ascontiguousarray(pixels[:, ::-1]) if self._flipped else pixels


def decoded_batches(
    paths: Sequence[pathlib.Path],
    predictor: Predictor,
    unreadable: dict[str, str],
    progress: Callable[[], object] = lambda: None,
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Yields the names and the decoded pixels of the images of files, a batch at a time.

    Args:
        paths: the files.
        predictor: whose preprocessing decodes them, and whose `batch_size` it is.
        unreadable: takes up path -> reason of the files that cannot be read.
        progress: is called for each of these.
    """
    images, problems = _images(paths, predictor.preprocessing)
    unreadable |= problems
    for start in range(0, len(images), predictor.batch_size):
        names, pixels = [], []
        for row in range(start, min(start + predictor.batch_size, len(images))):
            found = _decoded_or_reason(images, row, predictor.preprocessing)
            if isinstance(found, str):
                unreadable[images.names[row]] = found
                progress()
            else:
                names.append(images.names[row])
                pixels.append(found)
        if names:
            yield names, pixels


def _decoded_or_reason(
    images: LabelledImages, row: int, preprocessing: Preprocessing
) -> np.ndarray | str:
    """Returns an image as `Preprocessing.decode` does, or the reason why it cannot be read."""
    try:
        return preprocessing.decode(images.read(row))
    except (OSError, UserError) as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def as_rows(
    found: Predictions, *, top: int = 0, **decision: Any
) -> tuple[list[str], list[list[Any]]]:
    """Returns the names of the columns, and a row for each image.

    The columns are path, predicted, with sets `prediction_set`, whose classes have "|" between
    them, with `top` the likeliest classes and their probabilities (top_1, p_top_1 ...), and the
    probability of each class, `p_<class>`.

    Args:
        found: the predictions.
        top: how many of the likeliest classes have columns of their own.
        **decision: arguments of `Predictions.decided`.
    """
    count = len(found.class_names)
    if not 0 <= top <= count:
        raise UserError(f"top must lie between 0 and {count}, the number of classes; got {top}")
    header = ["path", "predicted"]
    if found.sets is not None:
        header.append("prediction_set")
    for place in range(1, top + 1):
        header += [f"top_{place}", f"p_top_{place}"]
    header += [f"p_{name}" for name in found.class_names]
    rows = []
    for row, (name, answer, p) in enumerate(
        zip(found.names, found.decided(**decision), found.probabilities, strict=True)
    ):
        inside = []
        if found.sets is not None:
            inside = ["|".join(found.class_names[k] for k in np.flatnonzero(found.sets[row]))]
        best = np.argsort(-p, kind="stable")[:top]
        likeliest = [cell for k in best for cell in (found.class_names[k], float(p[k]))]
        rows.append([printable(name), answer, *inside, *likeliest, *map(float, p)])
    return header, rows


def as_csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a CSV table; see `csv_text`. It begins with the mark by which Excel knows UTF-8."""
    cells = [[f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    return "\ufeff" + csv_text(header, cells)


def as_json_lines(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a JSON object for each image, one in a line."""
    return "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)


# Ending of the output file -> how its rows are written.
WRITERS: dict[str, Callable[[Sequence[str], Sequence[Sequence[Any]]], str]] = {
    ".csv": as_csv,
    ".jsonl": as_json_lines,
}


def writer_of(
    path: pathlib.Path, *, overwrite: bool = False
) -> Callable[[Sequence[str], Sequence[Sequence[Any]]], None]:
    """Makes the folder of the file, and returns the function that writes rows into the file.

    Raises:
        FileExistsError: the file exists, and it may not be replaced.
        OSError: the folder cannot be made, or not be written to.
        UserError: the ending is not in `WRITERS`.
    """
    if (ending := path.suffix.lower()) not in WRITERS:
        raise UserError(f"{path} must end in {' or '.join(WRITERS)}")
    require_free(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    require_writable(path.parent)

    def write(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        write_atomically(path, WRITERS[ending](header, rows))

    return write
