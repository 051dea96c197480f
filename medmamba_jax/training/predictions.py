"""`results/<split>_predictions.csv`: what the model says of every image."""

import csv
import pathlib

import numpy as np
from scipy.special import expit, softmax

from medmamba_jax.data import Dataset
from medmamba_jax.data.naming import short_name


def write_predictions(
    path: pathlib.Path, dataset: Dataset, split: str, labels: np.ndarray, logits: np.ndarray
) -> None:
    """Writes a row for each image of a split, in its order.

    The columns are path (or another name of the image), label and predicted, by name of the class,
    and the probability of each class, `p_<class>`. Of a multi-label set, where an image shows any
    number of classes, label and predicted are a column for each class: `label_<class>`, 1, 0 or
    empty for not known, and `predicted_<class>`, 1 where the probability is above 0.5. Written
    whole or not at all.

    Args:
        path: the file; its folder exists.
        dataset: the images.
        split: name of the split.
        labels: of its images, (n,) integers or, of a multi-label set, (n, K) of 1, 0 and NaN.
        logits: (n, K).
    """
    images, names = dataset.splits[split], dataset.class_names
    logits = np.asarray(logits, np.float64)
    if dataset.task == "multilabel":
        p = expit(logits)
        columns = [f"label_{name}" for name in names] + [f"predicted_{name}" for name in names]
        cells = [
            ["" if np.isnan(value) else int(value) for value in label] + [int(z > 0) for z in row]
            for label, row in zip(labels, logits, strict=True)
        ]
    else:
        p = softmax(logits, axis=1)
        columns = ["label", "predicted"]
        cells = [
            [names[label], names[row.argmax()]] for label, row in zip(labels, logits, strict=True)
        ]
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *columns, *(f"p_{name}" for name in names)])
        for row, (said, values) in enumerate(zip(cells, p, strict=True)):
            writer.writerow([short_name(images, row), *said, *(f"{value:.6g}" for value in values)])
    partial.replace(path)
