"""Warnings about a class that is never predicted, and about a metric that does not move."""

import pytest

from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.loop import advice_on_classes
from medmamba_jax.training.reporting import UnpredictedClasses
from medmamba_jax.training.selection import warning_of_ties


def validation(**num_predicted):
    """What a validation reports of classes that 5 images each show; of "absent" none."""
    return {
        name: {"num_predicted": count, "num_examples": 0 if name == "absent" else 5}
        for name, count in num_predicted.items()
    }


def test_named_after_3_epochs_and_when_their_number_doubles():
    watch = UnpredictedClasses("try something")
    said = {}
    for epoch in range(1, 26):
        warning = watch.warning(validation(rare=0, common=9, absent=0))
        if warning:
            said[epoch] = warning
    assert list(said) == [3, 6, 12, 24]
    for epoch, warning in said.items():
        assert f"'rare' for {epoch} epochs (5 validation images show it)" in warning
        assert "common" not in warning and "absent" not in warning


def test_a_prediction_starts_the_count_anew():
    watch = UnpredictedClasses("try something")
    counts = [0, 0, 1, 0, 0, 0]
    warnings = [watch.warning(validation(a=count, b=1)) for count in counts]
    assert [warning is not None for warning in warnings] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("task", "options", "advice"),
    [
        ("multiclass", {}, "train.class_weights='balanced' or train.sampler='balanced' in a new"),
        ("multilabel", {}, "train.pos_weights='balanced' in a new --workdir"),
        ("multiclass", {"sampler": "balanced"}, "weighted already"),
        ("multilabel", {"pos_weights": "balanced"}, "weighted already"),
    ],
)
def test_the_advice_is_what_is_not_in_use(task, options, advice):
    watch = UnpredictedClasses(advice_on_classes(TrainConfig(**options), task))
    *_, warning = (watch.warning(validation(a=0, b=0)) for _ in range(3))
    assert advice in warning and "'a' for 3 epochs" in warning and "'b' for 3 epochs" in warning


def test_a_metric_that_does_not_move_is_named_with_its_tie_breakers():
    rows, warnings = [], {}
    for epoch in range(1, 14):
        rows.append({"epoch": epoch, "val/balanced_accuracy": 0.25 if epoch < 3 else 1 / 3})
        if warning := warning_of_ties(rows, "balanced_accuracy"):
            warnings[epoch] = warning
    assert list(warnings) == [5, 8]  # 3 and 6 epochs at one value; 12 are not reached
    assert "val balanced accuracy has been 0.3333 for 3 epochs" in warnings[5]
    assert "tie-breakers choose" in warnings[5] and "(AUC, then loss)" in warnings[5]


def test_a_tie_breaker_itself_has_no_such_warning():
    assert warning_of_ties([{"val/auc": 0.5}] * 3, "auc") is None
