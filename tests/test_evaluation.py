import csv

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import accuracy_score, roc_auc_score

from medmamba_jax.data import LabelledImages
from medmamba_jax.evaluation import of_missing_classes, write_predictions
from medmamba_jax.metrics import Outputs, measure

RNG = np.random.default_rng(0)


@pytest.fixture
def table(tmp_path):
    """Returns a function (task, classes, labels, logits) -> rows of the file."""

    def table(task, classes, labels, logits):
        split = LabelledImages(np.zeros((len(labels), 4, 4), np.uint8), labels)
        outputs = Outputs(task, classes, split.labels, logits)
        write_predictions(tmp_path / "p.csv", split, outputs)
        with (tmp_path / "p.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert column(rows, "path") == [split.names[i] for i in range(len(labels))]
        return rows

    return table


def column(rows, name):
    return [row[name] for row in rows]


def test_the_figures_reported_follow_from_the_rows(table):
    classes, labels, logits = ("a", "b,c", "d"), np.arange(40) % 3, RNG.normal(size=(40, 3))
    rows = table("multiclass", classes, labels, logits)
    assert column(rows, "label") == [classes[label] for label in labels]
    reported = measure(Outputs("multiclass", classes, labels, logits))
    accuracy = accuracy_score(column(rows, "label"), column(rows, "predicted"))
    assert accuracy == pytest.approx(reported["accuracy"])
    p = np.array([column(rows, f"p_{name}") for name in classes], float).T
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert roc_auc_score(labels, p, multi_class="ovr") == pytest.approx(reported["auc"], abs=1e-6)


def test_several_labels_an_image(table):
    labels = np.float32(RNG.integers(0, 2, (20, 2)))
    labels[3, 1] = np.nan
    logits = RNG.normal(size=(20, 2))
    rows = table("multilabel", ("a", "b"), labels, logits)
    assert column(rows, "label_b")[3] == ""
    for k, name in enumerate(("a", "b")):
        written = [float(cell or "nan") for cell in column(rows, f"label_{name}")]
        np.testing.assert_array_equal(written, labels[:, k])
        p = np.array(column(rows, f"p_{name}"), float)
        np.testing.assert_allclose(p, expit(logits[:, k]), rtol=1e-5)
        assert column(rows, f"predicted_{name}") == [str(int(value > 0.5)) for value in p]


def test_a_class_that_no_image_or_every_image_shows_is_named():
    nan = np.nan
    labels = np.array([[0, 1, 1, nan], [nan, 1, 0, nan], [0, nan, 1, nan]], np.float32)
    names = ("never", "always", "both", "unknown")
    results = measure(Outputs("multilabel", names, labels, RNG.normal(size=(3, 4))))
    said = of_missing_classes(results)
    assert said.startswith("No image shows never, unknown. So sensitivity")
    assert "All images whose label is known show always. So specificity, NPV and AUC of" in said
    row = results["per_class"]["always"]
    assert row["specificity"] is row["npv"] is row["auc"] is None
    both = measure(Outputs("multilabel", ("both",), labels[:, 2:3], RNG.normal(size=(3, 1))))
    assert of_missing_classes(both) == ""
