"""The loss of a run, and checkpoint selection; nothing is trained."""

import jax
import numpy as np
import pytest

from medmamba_jax.data import Dataset, LabelledImages
from medmamba_jax.data.reading.order import sampler_for
from medmamba_jax.errors import UserError
from medmamba_jax.metrics import METRICS
from medmamba_jax.runs import Progress
from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.losses import make_loss, training_loss
from medmamba_jax.training.selection import advance, choose_best_metric, is_finished

NAN = float("nan")


def split(labels, count):
    pixels = np.zeros((len(labels), 8, 8), np.uint8)
    return LabelledImages(pixels, labels, tuple("abcdef"[:count]))


def dataset(train, val=None):
    val = train if val is None else val
    count = int(max(train)) + 1 if np.ndim(train) == 1 else np.shape(train)[1]
    return Dataset({"train": split(train, count), "val": split(val, count)})


CLASSES = dataset([0] * 9 + [1] * 3 + [2] * 4)
MARKS = dataset([[1, 0], [0, NAN], [0, 1], [0, 1], [0, 0]])
LOGITS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1])
CLASS_WEIGHTS = np.array([16 / 27, 16 / 9, 16 / 12], np.float32)
POS_WEIGHTS = np.array([4, 1], np.float32)


@pytest.mark.parametrize(
    ("config", "name", "weights", "options"),
    [
        ({}, "cross_entropy", None, {"label_smoothing": 0.0}),
        ({"label_smoothing": 0.1}, "cross_entropy", None, {"label_smoothing": 0.1}),
        ({"class_weights": "balanced"}, "cross_entropy", CLASS_WEIGHTS, {"label_smoothing": 0.0}),
        ({"loss": "focal", "focal_gamma": 1.5}, "focal", None, {"focal_gamma": 1.5}),
        ({"loss": "ordinal"}, "ordinal", None, {}),
        ({"loss": "ordinal", "class_weights": "balanced"}, "ordinal", CLASS_WEIGHTS, {}),
    ],
)
def test_losses_of_one_class_an_image(config, name, weights, options):
    loss, _ = training_loss(TrainConfig(**config), CLASSES)
    expected = make_loss(name, "multiclass", weights, options)
    np.testing.assert_array_equal(loss(LOGITS, LABELS), expected(LOGITS, LABELS))


@pytest.mark.parametrize(
    ("config", "name", "weights", "options"),
    [
        ({}, "binary_cross_entropy", None, {"label_smoothing": 0.0}),
        ({"label_smoothing": 0.1}, "binary_cross_entropy", None, {"label_smoothing": 0.1}),
        (
            {"pos_weights": "balanced"},
            "binary_cross_entropy",
            POS_WEIGHTS,
            {"label_smoothing": 0.0},
        ),
        (
            {"loss": "focal", "pos_weights": "balanced"},
            "focal",
            POS_WEIGHTS,
            {"focal_gamma": 2.0},
        ),
    ],
)
def test_losses_of_multilabel_sets(config, name, weights, options):
    loss, _ = training_loss(TrainConfig(**config), MARKS)
    expected = make_loss(name, "multilabel", weights, options)
    batch = LOGITS[:, :2], np.array([[1, 0], [NAN, 1], [0, 0], [1, NAN]], np.float32)
    np.testing.assert_array_equal(loss(*batch), expected(*batch))


def test_weights_are_of_the_training_split_alone_and_shown():
    other = dataset([0, 0, 0, 1], val=[0, 1, 1, 1, 1, 1])
    _, text = training_loss(TrainConfig(class_weights="balanced"), other)
    assert text == "cross_entropy; class_weights 0.667, 2"
    other = dataset([[1, 0], [0, NAN], [0, 1], [0, 1], [0, 0]], val=[[1, 0], [1, 1], [0, 1]])
    _, text = training_loss(TrainConfig(pos_weights="balanced", loss="focal"), other)
    assert text == "focal; focal_gamma 2; pos_weights 4, 1"


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
    chosen, reason = choose_best_metric("auto", data)
    assert chosen == metric and reason.startswith(" (auto")


def test_a_metric_by_name():
    assert choose_best_metric("f1", dataset([0] * 31 + [1] * 10)) == ("f1", "")


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
        (MARKS, {"sampler": "balanced"}, r"use one of \['shuffle'\], and weights"),
        (dataset([0, 2], val=[0, 1]), {"class_weights": "balanced"}, r"image of classes \['b'\]"),
        (dataset([[1, 0], [0, 0]]), {"pos_weights": "balanced"}, r"classes \['b'\] lack either"),
        (MARKS, {"best_metric": "accuracy"}, "'accuracy' is not measured on multilabel.*'subset"),
        (CLASSES, {"best_metric": "label_accuracy"}, "not measured on multiclass"),
        (dataset([0, 1], val=[1, 1]), {}, "'auc' needs two classes in the validation split"),
        (dataset([0, 1], val=[1, 1]), {"best_metric": "average_precision"}, "needs two classes"),
        (dataset([[0, 1], [1, 0]], val=[[0, 1], [NAN, 1]]), {}, "needs a class that some images"),
        (
            dataset([[0, 1], [1, 0]], val=[[0, 0], [NAN, 0]]),
            {"best_metric": "sensitivity"},
            "'sensitivity' is not defined",
        ),
        (
            dataset([[0, 1], [1, 0]], val=[[1, 1], [NAN, 1]]),
            {"best_metric": "specificity"},
            "'specificity' is not defined",
        ),
        (dataset([[0, 1], [1, 0]], val=[[NAN, NAN]]), {}, "no label of split 'val' is known"),
        (dataset([[NAN, NAN]], val=[[0, 1]]), {}, "no label of split 'train' is known"),
    ],
)
def test_what_does_not_go_together(data, options, problem):
    config = TrainConfig(**options)
    with pytest.raises(UserError, match=problem):
        sampler_for(config.sampler, data.task)
        training_loss(config, data)
        choose_best_metric(config.best_metric, data)


@pytest.mark.parametrize("loss", ["focal", "ordinal"])
def test_losses_can_be_compiled_with_their_weights(loss):
    loss, _ = training_loss(TrainConfig(loss=loss, class_weights="balanced"), CLASSES)
    np.testing.assert_allclose(jax.jit(loss)(LOGITS, LABELS), loss(LOGITS, LABELS), rtol=1e-5)


def after(metric, *validations):
    """The progress after validations that report the metric, the AUC and the loss."""
    progress = Progress()
    for value, auc, loss in validations:
        found = {"auc": auc, "loss": loss, metric: value}
        progress = advance(progress, metric, found)
    return progress


@pytest.mark.parametrize(
    ("validations", "best"),
    [
        ([(0.3, 0.6, 1.0), (0.4, 0.5, 2.0)], 2),  # the metric decides
        ([(0.3, 0.6, 1.0), (0.3, 0.7, 2.0), (0.3, 0.65, 0.5)], 2),  # a tie: the AUC decides
        ([(0.3, 0.6, 1.0), (0.3, 0.6, 0.9), (0.3, 0.6, 0.95)], 2),  # then the loss
        ([(0.3, 0.6, 1.0), (0.3, 0.6, 1.0)], 1),  # the first of equals
        ([(None, 0.6, 1.0), (0.1, None, 1.0), (None, 0.9, 0.1)], 2),  # undefined is worst
        ([(0.3, None, 1.0), (0.3, 0.5, 2.0)], 2),
    ],
)
def test_ties_are_decided_by_auc_then_loss(validations, best):
    assert after("balanced_accuracy", *validations).best_epoch == best


def test_a_smaller_loss_is_better():
    progress = after("loss", (1.0, 0.5, 1.0), (0.8, 0.5, 0.8), (0.9, 0.9, 0.9))
    assert progress.best_epoch == 2 and dict(progress.best_values) == {"loss": 0.8, "auc": 0.5}


def test_only_an_improvement_resets_patience():
    ties = [(0.3, 0.6, 1.0)] * 3
    assert is_finished(after("f1", *ties), epochs=99, patience=2)
    improving = [(0.3, 0.6 + 0.01 * i, 1.0) for i in range(9)]
    assert not is_finished(after("f1", *improving), epochs=99, patience=2)
    assert is_finished(after("f1", *improving), epochs=9, patience=0)
    assert not is_finished(after("f1", *ties), epochs=99, patience=0)
    assert not is_finished(Progress(5), epochs=99, patience=2)  # its best checkpoint is lost


def test_every_metric_of_the_table_can_choose():
    for data in (CLASSES, MARKS):
        for name, metric in METRICS.items():
            if data.task in metric.tasks:
                assert choose_best_metric(name, data) == (name, "")
