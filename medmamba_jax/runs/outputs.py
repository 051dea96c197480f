"""The outputs of a model, as `evaluation.write_predictions` leaves them in a run's folder."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from medmamba_jax.data.csv_table import read_csv_table
from medmamba_jax.data.texts import composed
from medmamba_jax.errors import UserError
from medmamba_jax.metrics import Outputs


@dataclasses.dataclass(frozen=True)
class StoredOutputs:
    """Labels and outputs of images.

    Attributes:
        names: the path, or another name, of each image (n).
        facts: what the table knows of "patient", "file" and "content", texts (n,) each; see
            `write_predictions`.
        outputs: labels and logits (n). Only differences of logits mean something.
    """

    names: tuple[str, ...]
    facts: Mapping[str, np.ndarray]
    outputs: Outputs

    def take(self, rows: np.ndarray) -> "StoredOutputs":
        """Returns the images of these rows, in this order."""
        facts = {name: values[rows] for name, values in self.facts.items()}
        return StoredOutputs(tuple(self.names[row] for row in rows), facts, self.outputs.take(rows))

    @classmethod
    def joined(cls, parts: Sequence["StoredOutputs"]) -> "StoredOutputs":
        """Returns the images of all parts, with the facts that all of them know."""
        known = [name for name in parts[0].facts if all(name in part.facts for part in parts)]
        outputs = dataclasses.replace(
            parts[0].outputs,
            labels=np.concatenate([part.outputs.labels for part in parts]),
            logits=np.concatenate([part.outputs.logits for part in parts]),
        )
        facts = {name: np.concatenate([part.facts[name] for part in parts]) for name in known}
        return cls(tuple(name for part in parts for name in part.names), facts, outputs)


def read_outputs(path: pathlib.Path, task: str, class_names: Sequence[str]) -> StoredOutputs:
    """Reads a table of predictions.

    The table has nine digits of each probability, so that metrics can differ from those of the
    model's own outputs in the last digits. Tables of earlier versions have six, and no content.

    Args:
        path: the table.
        task: of the run.
        class_names: of the run, K names.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the table does not have the columns that the run's classes need, or it is
            damaged.
    """
    table = read_csv_table(path)
    count = len(class_names)
    spelled = [composed(name.strip()) for name in class_names]
    expected = ["label", "predicted", *(composed(f"p_{name}".strip()) for name in class_names)]
    if task == "multilabel":
        before = [f"label_{name}" for name in spelled] + [f"predicted_{name}" for name in spelled]
        expected = [*before, *expected[2:]]
    start = len(table.header) - len(expected)
    if start < 1 or list(table.header[start:]) != expected:
        raise UserError(
            f"{path} has the columns {', '.join(table.header)}, and the run's classes need"
            f" {', '.join(expected)}: write it again with medmamba evaluate"
        )
    cells = np.array(table.rows, object)
    try:
        p = cells[:, -count:].astype(np.float64)
        if task == "multilabel":
            known = np.where(
                cells[:, start : start + count] == "", "nan", cells[:, start:][:, :count]
            )
            labels = known.astype(np.float32)
        else:
            labels = np.array([spelled.index(text) for text in cells[:, start]], np.int64)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): write it again") from error
    wrong = ~((p >= 0) & (p <= 1)).all(1)  # NaN, too
    if task == "multiclass":
        wrong |= abs(p.sum(1) - 1) > 1e-3
    for row in np.flatnonzero(wrong)[:1]:
        raise UserError(
            f"{path} is damaged: the probabilities of {cells[row, 0]} are"
            f" {', '.join(cells[row, -count:])}: write it again with medmamba evaluate"
        )
    least, most = np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg
    p = p.clip(least, most if task == "multilabel" else 1)
    logits = np.log(p) - np.log1p(-p) if task == "multilabel" else np.log(p)
    facts = {name: cells[:, i].astype(str) for i, name in enumerate(table.header[:start]) if i}
    return StoredOutputs(
        tuple(cells[:, 0]), facts, Outputs(task, tuple(class_names), labels, logits)
    )
