"""Writes the pooled features of image files, and a picture of which images lie near each other."""

import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from medmamba_jax.data.csv_table import write_csv_table
from medmamba_jax.data.texts import printable
from medmamba_jax.explanation.files import Written
from medmamba_jax.files import make_output_folder, write_atomically
from medmamba_jax.prediction import decoded_batches
from medmamba_jax.predictor import Predictor

FEWEST = 5  # images of which t-SNE makes a picture
_PERPLEXITY = 30.0  # of t-SNE, unless there are too few images
_FEW = 300  # images
_OTHERS = "not known"
TABLE = "embedding.csv"


def embed_files(
    predictor: Predictor,
    paths: Sequence[pathlib.Path],
    folder: pathlib.Path,
    classes: Sequence[str],
    progress: Callable[[], object] = lambda: None,
    *,
    overwrite: bool = False,
) -> Written:
    """Writes the features of image files. A file that cannot be read does not stop the others.

    It writes `embedding.npz` into the folder: `features` float32 (n, c), which the head of the
    model reads, and `tsne` float32 (n, 2), with `path`, `class` and `predicted` as texts (n).
    `embedding.csv` has a row for each image, and `embedding.png` is the picture of `tsne`. With
    fewer than `FEWEST` images there is no t-SNE.

    Args:
        predictor: the trained model.
        paths: the files.
        folder: is made, or is empty.
        classes: the known class of each file; "" where it is not known.
        progress: is called after each image.
        overwrite: whether to replace what an earlier call wrote into this folder.

    Raises:
        FileExistsError: the folder is not empty; see `overwrite`.
        OSError: the folder cannot be written to.
    """
    others = [folder / "embedding.npz", folder / "embedding.png"]
    make_output_folder(folder, TABLE, lambda _: others, overwrite=overwrite)
    unreadable: dict[str, str] = {}
    known = dict(zip(map(str, paths), classes, strict=True))
    names: list[str] = []
    features = [np.zeros((0, predictor.model.num_features), np.float32)]
    predicted: list[str] = []
    for of_batch, pixels in decoded_batches(paths, predictor, unreadable, progress):
        split = predictor.split_of(pixels)
        features.append(predictor.features(split))
        likeliest = predictor.logits(split).argmax(1)
        predicted += [predictor.class_names[k] for k in likeliest]
        names += of_batch
        for _ in pixels:
            progress()
    table = np.concatenate(features)
    # A frame is named after its file.
    shown = [known.get(name) or known.get(name.rpartition(", frame ")[0], "") for name in names]
    facts = {"path": [printable(name) for name in names], "class": shown, "predicted": predicted}
    arrays: dict[str, Any] = {"features": table}
    arrays |= {name: np.array(values, np.str_) for name, values in facts.items()}
    if len(names) >= FEWEST:
        arrays["tsne"] = neighbours(table)
        of = "class" if any(shown) else "predicted"
        picture = scatter(arrays["tsne"], facts[of], predictor.class_names, f"colour: {of}")
        write_atomically(folder / "embedding.png", picture)
        facts |= {axis: [f"{v:.6g}" for v in arrays["tsne"][:, i]] for i, axis in enumerate("xy")}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(folder / "embedding.npz", content.getvalue())
    write_csv_table(folder / TABLE, list(facts), zip(*facts.values(), strict=True))
    return Written(len(names), unreadable)


def neighbours(features: np.ndarray) -> np.ndarray:
    """Returns places in a plane, float32 (n, 2), by t-SNE (van der Maaten and Hinton 2008).

    The perplexity is 30, or a third of the number of images where there are fewer than 90. The same
    features give the same places.

    Args:
        features: float32 (n, c), of 5 or more images.
    """
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    # The approximation is for many images. Of few it takes long, where others use the processor.
    method = "exact" if len(features) <= _FEW else "barnes_hut"
    model = TSNE(perplexity=perplexity, init="random", random_state=0, method=method)
    return model.fit_transform(features).astype(np.float32)


def scatter(
    places: np.ndarray, classes: Sequence[str], class_names: Sequence[str], caption: str
) -> bytes:
    """Draws a point for each image, coloured by its class, as a PNG file.

    Args:
        places: (n, 2).
        classes: the class of each image; "" is drawn in grey.
        class_names: all classes, in the order of their colours.
        caption: is written below.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab10" if len(class_names) <= 10 else "turbo"]
    of_class = np.array(classes)
    for k, name in enumerate(("", *class_names)):
        chosen = places[of_class == name]
        if len(chosen):
            place = k - 1 if len(class_names) <= 10 else (k - 1) / (len(class_names) - 1)
            colour = colours(place) if k else "lightgrey"
            label = f"{_as_text(name) or _OTHERS} ({len(chosen)})"
            axes.scatter(chosen[:, 0], chosen[:, 1], s=14, color=colour, label=label, linewidths=0)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(f"t-SNE of the pooled features of {len(places)} images")
    axes.set_xlabel(f"{caption}\nNear points are alike. Distances between far groups mean nothing.")
    figure.legend(loc="outside right upper", frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _as_text(name: str) -> str:
    """Returns a name that matplotlib takes neither for a formula nor for a hidden label."""
    text = printable(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
