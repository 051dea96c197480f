"""Runs' folders as training leaves them, made of random outputs, for the tests of reports."""

import dataclasses
import json

import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax.assessment.calibration import calibrate, write_calibration
from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.data.splits.split_table import write_split_table
from medmamba_jax.metrics import Outputs
from medmamba_jax.runs import RunDescription
from medmamba_jax.runs.results import assess, write_results

SETTINGS = ResultsConfig(resamples=20)


@pytest.fixture(scope="session")
def write_run(config):
    """Returns a function that writes what a finished run leaves, without checkpoints."""

    def write_run(
        folder,
        class_names,
        *,
        task="multiclass",
        count=60,
        splits=("val", "test"),
        patients=True,
        elsewhere=(),
        of_one_class=False,
        synthetic=False,
        **train,
    ):
        settings = config(**train)
        (folder / "results").mkdir(parents=True)
        images = {
            name: random_images(i, class_names, task, count, patients, synthetic)
            for i, name in enumerate(("train", *splits))
        }
        description = RunDescription(
            config=settings.to_dict(),
            model=settings.model.architecture(len(class_names)),
            preprocessing=settings.data.preprocessing(3),
            class_names=tuple(class_names),
            task=task,
            best_metric="auc",
            dataset="clinic",
            images_sha256=dict.fromkeys(images, "a"),
            synthetic=synthetic,
        )
        description.write(folder)
        (folder / "versions.json").write_text(json.dumps({"python": "3.11", "device": "1 x cpu"}))
        write_split_table(folder / "split.csv", mm.Dataset(images))
        rows = [
            {"epoch": e, "train/loss": 1 / e, "val/loss": 1.2 / e, "train/auc": 0.8, "val/auc": 0.7}
            | {"images_per_second": 10.0 * e, "data_wait_share": 0.1, "peak_memory_bytes": 2**30}
            for e in (1, 2, 3)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        calibration = None
        for name in splits:
            outputs = random_outputs(images[name])
            facts = {"split": name, "dataset": "clinic", "epoch": 2, "synthetic": synthetic}
            found = facts | assess(outputs, images[name], SETTINGS, calibration)
            write_results(folder / "results", f"{name}_", found, images[name], outputs)
            if name == "val":
                calibration = calibrate(outputs, 2)
                write_calibration(folder, calibration)
        for i, name in enumerate(elsewhere):
            others = random_images(9 + i, class_names, task, count, patients, synthetic)
            if of_one_class:
                others = dataclasses.replace(others, labels=np.full(count, 1, np.int32))
            outputs = random_outputs(others)
            facts = {"evaluated": name, "training_images": 3, "epoch": 2, "synthetic": synthetic}
            found = facts | assess(outputs, others, SETTINGS, calibration)
            write_results(folder / "evaluations" / name, "", found, others, outputs)
        return folder

    return write_run


@pytest.fixture
def page_only(monkeypatch):
    """Leaves out PNG and PDF files, which take most of the time."""
    monkeypatch.setattr("medmamba_jax.report.page.write_figures", lambda *_: None)


def random_images(seed, class_names, task, count, patients, synthetic):
    rng = np.random.default_rng(seed)
    if task == "multiclass":
        labels = np.arange(count) % len(class_names)
    else:
        labels = rng.integers(0, 2, (count, len(class_names))).astype(np.float32)
        labels[:3, 0] = np.nan
    found = mm.LabelledImages(
        rng.integers(0, 255, (count, 8, 8), dtype=np.uint8),
        labels,
        tuple(class_names),
        names=tuple(f"{seed}/<b>{row}</b>.png" for row in range(count)),
        name="clinic",
        synthetic=synthetic,
    )
    if patients:
        groups = np.array([f"{seed}-{row // 2}" for row in range(count)])
        found = dataclasses.replace(found, groups=groups)
    return found


def random_outputs(images):
    rng = np.random.default_rng(len(images))
    if images.task == "multiclass":
        truth = np.eye(len(images.class_names))[images.labels]
    else:
        truth = 2 * np.nan_to_num(images.labels) - 1
    logits = 1.5 * truth + rng.normal(size=truth.shape)
    return Outputs(images.task, images.class_names, images.labels, logits)
