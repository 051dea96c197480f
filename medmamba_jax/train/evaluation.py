"""Logits of a split, the metrics of them, and `results/<split>.json`."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from medmamba_jax.data import Preprocessing, Split, eval_batches
from medmamba_jax.train.metrics import classification_metrics
from medmamba_jax.train.sharding import DataParallel


def evaluate_split(
    eval_step: Callable[..., dict[str, jax.Array]],
    params: Any,
    variables: Any,
    split: Split,
    *,
    preprocessing: Preprocessing,
    parallel: DataParallel,
    batch_size: int,
    num_workers: int,
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    """Runs a split once, every image exactly once, and returns `classification_metrics`."""
    batches = eval_batches(
        split,
        preprocessing,
        batch_size=batch_size,
        num_workers=num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    outputs = []
    with batches:
        for batch in batches:
            outputs.append(eval_step(params, variables, parallel.put_batch(batch)))
    outputs = jax.device_get(outputs)
    mask = np.concatenate([x["mask"] for x in outputs])
    labels = np.concatenate([x["label"] for x in outputs])[mask]
    logits = np.concatenate([x["logits"] for x in outputs])[mask]
    return classification_metrics(labels, logits, class_names)


def write_results(workdir: pathlib.Path, split: str, results: dict[str, Any]) -> pathlib.Path:
    """Writes `results/<split>.json` and returns its path."""
    path = workdir / "results" / f"{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    return path


def results_table(results: dict[str, Any]) -> str:
    """Returns accuracy, AUC and a line per class as text."""

    def cell(value):
        return f"{'-':>12}" if value is None else f"{value:>12.3f}"

    width = max(5, *(len(name) for name in results["class_names"]))
    columns = ("sensitivity", "specificity", "f1", "auc")
    auc = "undefined" if results["auc"] is None else f"{results['auc']:.4f}"
    lines = [
        f"accuracy {results['accuracy']:.4f}, balanced accuracy "
        f"{results['balanced_accuracy']:.4f}, macro AUC {auc} ({results['num_examples']} images)",
        f"  {'class':<{width}}{'images':>8}" + "".join(f"{name:>12}" for name in columns),
    ]
    for name, row in results["per_class"].items():
        cells = "".join(cell(row[column]) for column in columns)
        lines.append(f"  {name:<{width}}{row['num_examples']:>8}{cells}")
    return "\n".join(lines)
