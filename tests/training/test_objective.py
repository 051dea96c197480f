"""What a run minimises and what chooses its best checkpoint; nothing is trained."""

import jax
import numpy as np
import pytest

from medmamba_jax.data import Dataset, InMemorySplit
from medmamba_jax.training import losses
from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.objective import make_objective

NAN = float("nan")


def split(labels):
    return InMemorySplit(np.zeros((len(labels), 8, 8), np.uint8), labels)


def dataset(train, val=None):
    val = train if val is None else val
    splits = {"train": split(train), "val": split(val), "test": split(val)}
    multilabel = splits["train"].labels.ndim == 2
    task = "multilabel" if multilabel else "multiclass"
    count = splits["train"].labels.shape[1] if multilabel else int(max(train)) + 1
    return Dataset("own", "by hand", tuple("abcdef"[:count]), splits, synthetic=True, task=task)


CLASSES = dataset([0] * 9 + [1] * 3 + [2] * 4)
MARKS = dataset([[1, 0], [0, NAN], [0, 1], [0, 1], [0, 0]])
LOGITS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1])
CLASS_WEIGHTS = np.array([16 / 27, 16 / 9, 16 / 12], np.float32)
POS_WEIGHTS = np.array([4, 1], np.float32)


@pytest.mark.parametrize(
    ("options", "expected", "settings"),
    [
        ({}, losses.cross_entropy, {}),
        (
            {"loss": "cross_entropy", "label_smoothing": 0.1},
            losses.cross_entropy,
            {"label_smoothing": 0.1},
        ),
        ({"class_weights": "balanced"}, losses.cross_entropy, {"class_weights": CLASS_WEIGHTS}),
        ({"loss": "focal", "focal_gamma": 1.5}, losses.focal, {"gamma": 1.5}),
        ({"loss": "ordinal"}, losses.ordinal, {}),
        (
            {"loss": "ordinal", "class_weights": "balanced"},
            losses.ordinal,
            {"class_weights": CLASS_WEIGHTS},
        ),
    ],
)
def test_losses_of_one_class_an_image(options, expected, settings):
    loss = make_objective(TrainConfig(**options), CLASSES).loss
    np.testing.assert_array_equal(loss(LOGITS, LABELS), expected(LOGITS, LABELS, **settings))


@pytest.mark.parametrize(
    ("options", "expected", "settings"),
    [
        ({}, losses.binary_cross_entropy, {}),
        ({"label_smoothing": 0.1}, losses.binary_cross_entropy, {"label_smoothing": 0.1}),
        ({"pos_weights": "balanced"}, losses.binary_cross_entropy, {"pos_weights": POS_WEIGHTS}),
        (
            {"loss": "focal", "pos_weights": "balanced"},
            losses.binary_focal,
            {"gamma": 2.0, "pos_weights": POS_WEIGHTS},
        ),
    ],
)
def test_losses_of_multilabel_sets(options, expected, settings):
    loss = make_objective(TrainConfig(**options), MARKS).loss
    batch = LOGITS[:, :2], np.array([[1, 0], [NAN, 1], [0, 0], [1, NAN]], np.float32)
    np.testing.assert_array_equal(loss(*batch), expected(*batch, **settings))


def test_weights_are_of_the_training_split_alone_and_shown():
    other = dataset([0, 0, 0, 1], val=[0, 1, 1, 1, 1, 1])
    text = make_objective(TrainConfig(class_weights="balanced"), other).loss_text
    assert text == "cross_entropy; class_weights 0.667, 2"


def test_weights_are_of_the_training_images_alone():
    data = dataset([[1, 0], [0, NAN], [0, 1], [0, 1], [0, 0]], val=[[1, 0], [1, 1], [0, 1]])
    loss = make_objective(TrainConfig(pos_weights="balanced"), data).loss
    np.testing.assert_array_equal(loss.keywords["pos_weights"], POS_WEIGHTS)
    data = dataset([0] * 9 + [1] * 3 + [2] * 4, val=[0, 1, 2])
    loss = make_objective(TrainConfig(class_weights="balanced"), data).loss
    np.testing.assert_array_equal(loss.keywords["class_weights"], CLASS_WEIGHTS)


@pytest.mark.parametrize(
    ("data", "metric"),
    [
        (dataset([0] * 30 + [1] * 10), "auc"),
        (dataset([0] * 31 + [1] * 10), "balanced_accuracy"),
        (dataset([0, 1], val=[0] * 31 + [1]), "auc"),  # the training split decides
        (dataset([[1]] + [[0]] * 20), "auc"),
    ],
)
def test_auto_metric(data, metric):
    objective = make_objective(TrainConfig(), data)
    assert objective.best_metric == metric and objective.best_text.startswith(f"{metric} (auto")


def test_a_metric_by_name():
    objective = make_objective(TrainConfig(best_metric="f1"), dataset([0] * 31 + [1] * 10))
    assert (objective.best_metric, objective.best_text) == ("f1", "f1")


@pytest.mark.parametrize(
    ("data", "options", "problem"),
    [
        (
            MARKS,
            {"loss": "cross_entropy"},
            r"loss='cross_entropy' is not for multilabel labels.*"
            r"one of \['binary_cross_entropy', 'focal'\], or 'auto'",
        ),
        (MARKS, {"loss": "ordinal"}, "loss='ordinal' is not for multilabel"),
        (CLASSES, {"loss": "binary_cross_entropy"}, "is not for multiclass labels.*'focal', 'ord"),
        (MARKS, {"class_weights": "balanced"}, r"use train\.pos_weights"),
        (CLASSES, {"pos_weights": "balanced"}, r"use train\.class_weights"),
        (MARKS, {"sampler": "balanced"}, r"use 'shuffle', and train\.pos_weights='balanced'"),
        (dataset([0, 2], val=[0, 1]), {"sampler": "balanced"}, r"image of classes \['b'\]"),
        (dataset([0, 2], val=[0, 1]), {"class_weights": "balanced"}, r"image of classes \[1\]"),
        (dataset([[1, 0], [0, 0]]), {"pos_weights": "balanced"}, r"classes \[1\] lack either"),
        (MARKS, {"best_metric": "accuracy"}, "'accuracy' is not measured on multilabel.*'subset"),
        (CLASSES, {"best_metric": "label_accuracy"}, "not measured on multiclass"),
        (dataset([0, 1], val=[1, 1]), {}, "'auc' needs two classes in the validation split"),
        (dataset([0, 1], val=[1, 1]), {"best_metric": "average_precision"}, "needs two classes"),
        (dataset([[0, 1], [1, 0]], val=[[0, 1], [NAN, 1]]), {}, "needs a class that some images"),
        (dataset([[0, 1], [1, 0]], val=[[NAN, NAN]]), {}, "no label of split 'val' is known"),
        (dataset([[NAN, NAN]], val=[[0, 1]]), {}, "no label of split 'train' is known"),
    ],
)
def test_what_does_not_go_together(data, options, problem):
    with pytest.raises(ValueError, match=problem):
        make_objective(TrainConfig(**options), data)


@pytest.mark.parametrize("loss", ["focal", "ordinal"])
def test_losses_can_be_compiled_with_their_weights(loss):
    options = TrainConfig(loss=loss, class_weights="balanced")
    loss = make_objective(options, CLASSES).loss
    np.testing.assert_allclose(jax.jit(loss)(LOGITS, LABELS), loss(LOGITS, LABELS), rtol=1e-5)
