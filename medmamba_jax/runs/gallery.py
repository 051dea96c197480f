"""Pictures of the images that a reader of results wants to see, each with its Grad-CAM map."""

import dataclasses
import io
import json
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np
from PIL import Image

from medmamba_jax.data.images.drawing import as_picture
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.texts import printable
from medmamba_jax.explanation.maps import maps_of_classes
from medmamba_jax.explanation.pictures import overlay
from medmamba_jax.files import write_atomically
from medmamba_jax.metrics import Outputs
from medmamba_jax.predictor import Predictor

FILE = "gallery.json"
METHOD = "grad_cam"
OF_A_KIND = 6
_LONGEST = 320  # pixels


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image of the gallery.

    Attributes:
        kind: "mistake" or "near".
        name: the path of the image, or its other name.
        label: the true class; of a multi-label set "shows X" or "does not show X".
        answer: what the model says, likewise.
        explained: the class that the map explains.
        p: the model's probability of this class.
        image: the file of the picture, in the gallery's folder.
        heat: the file of the picture with the map.
        size: width and height of both, in pixels.
    """

    kind: str
    name: str
    label: str
    answer: str
    explained: str
    p: float
    image: str
    heat: str
    size: tuple[int, int]


def choose(outputs: Outputs) -> list[tuple[str, int, int]]:
    """Chooses at most `OF_A_KIND` images of each kind, the same ones for the same outputs.

    The kinds are "mistake", the mistakes with the highest probability, and "near", the other images
    nearest to another decision: those with the smallest difference between the two likeliest
    classes; of a multi-label set those with a probability nearest to 0.5.

    Args:
        outputs: labels and logits of the images.

    Returns:
        Kind, row of the image, and class that the model is wrong or unsure about.
    """
    p, rows = outputs.probabilities, np.arange(len(outputs.labels))
    if outputs.task == "multiclass":
        classes = outputs.predicted
        wrong = np.where(classes != outputs.labels, p[rows, classes], -1.0)
        best = np.sort(p, axis=1)[:, -2:]
        distance, near = best[:, 1] - best[:, 0], classes
    else:
        known = ~np.isnan(outputs.labels)
        error = np.where(known & ((outputs.labels == 1) != outputs.predicted), abs(p - 0.5), -1.0)
        classes, wrong = error.argmax(1), error.max(1)
        away = np.where(known, abs(p - 0.5), np.inf)
        near, distance = away.argmin(1), away.min(1)
    worst = np.argsort(-wrong, kind="stable")[:OF_A_KIND].tolist()
    mistakes = [("mistake", row, int(classes[row])) for row in worst if wrong[row] >= 0]
    taken = {row for _, row, _ in mistakes}
    others = [row for row in np.argsort(distance, kind="stable").tolist() if row not in taken]
    return mistakes + [
        ("near", row, int(near[row])) for row in others[:OF_A_KIND] if np.isfinite(distance[row])
    ]


def write_gallery(
    folder: pathlib.Path, predictor: Predictor, images: LabelledImages, outputs: Outputs, epoch: int
) -> None:
    """Writes the pictures, and `gallery.json`, which says what they show.

    Args:
        folder: is made; the pictures of an earlier call are replaced.
        predictor: the model, which computes the maps. On several hosts it must be one of
            `Predictor.on_this_host`.
        images: the evaluated images.
        outputs: labels and logits of these.
        epoch: the epoch of the checkpoint, by which `read_gallery` knows an old gallery.
    """
    chosen = choose(outputs)
    maps: list[np.ndarray] = []
    if chosen:
        rows, classes = np.array([(row, of) for _, row, of in chosen]).T
        maps = list(maps_of_classes(predictor, images.take(rows), classes, method=METHOD))
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / FILE, *folder.glob("*.jpg")):
        old.unlink(missing_ok=True)
    entries = []
    for number, ((kind, row, of), heat) in enumerate(zip(chosen, maps, strict=True), 1):
        pixels = predictor.preprocessing.decode(images.read(row))
        over = overlay(pixels, predictor.preprocessing.unresize(heat, pixels.shape[:2]), METHOD)
        over.thumbnail((_LONGEST, _LONGEST))
        plain = as_picture(pixels).resize(over.size, Image.Resampling.BICUBIC)
        stem = f"{number:02d}_{kind}"
        write_atomically(folder / f"{stem}.jpg", _as_jpeg(plain))
        write_atomically(folder / f"{stem}_map.jpg", _as_jpeg(over))
        label, answer = _texts(outputs, row, of)
        entries.append(
            Entry(
                kind=kind,
                name=printable(images.names[row]),
                label=label,
                answer=answer,
                explained=outputs.class_names[of],
                p=float(outputs.probabilities[row, of]),
                image=f"{stem}.jpg",
                heat=f"{stem}_map.jpg",
                size=over.size,
            )
        )
    _write_entries(folder, epoch, entries)


def write_empty_gallery(folder: pathlib.Path, epoch: int) -> None:
    """Writes a gallery without images in place of one that could not be made.

    It shows a run that starts again that there is nothing to wait for.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _write_entries(folder, epoch, [])


def _write_entries(folder: pathlib.Path, epoch: int, entries: Sequence[Entry]) -> None:
    content = {"epoch": epoch, "entries": [dataclasses.asdict(entry) for entry in entries]}
    write_atomically(folder / FILE, json.dumps(content, indent=2) + "\n")


def has_gallery(folder: pathlib.Path, epoch: int) -> bool:
    """Whether a folder has a complete gallery of this checkpoint; it may be without images."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return content["epoch"] == epoch
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_gallery(folder: pathlib.Path, epoch: int) -> list[Entry]:
    """Reads what `write_gallery` wrote.

    Returns:
        The images; none if there is no gallery, or if it is damaged or of another checkpoint. An
        entry is left out if its pictures are not files of this folder: a run's folder that somebody
        else made must not bring other files of this machine into a report.
    """
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if content["epoch"] != epoch:
            return []
        entries = [Entry(**entry | {"size": tuple(entry["size"])}) for entry in content["entries"]]
        return [e for e in entries if _is_own(folder, e.image) and _is_own(folder, e.heat)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _is_own(folder: pathlib.Path, name: str) -> bool:
    bare = not any(c in name for c in "/\\:") and name not in ("", ".", "..")
    return bare and not (folder / name).is_symlink()


def _texts(outputs: Outputs, row: int, of: int) -> tuple[str, str]:
    name = outputs.class_names[of]
    if outputs.task == "multiclass":
        return outputs.class_names[outputs.labels[row]], name
    shows = {True: f"shows {name}", False: f"does not show {name}"}
    return shows[outputs.labels[row, of] == 1], shows[bool(outputs.predicted[row, of])]


def _as_jpeg(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=88)
    return content.getvalue()
