"""Warnings about a class that is never predicted, and about a metric that does not move."""

import pytest

from medmamba_jax.runs import Progress
from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.loop import advice_on_classes
from medmamba_jax.training.reporting import UnpredictedClasses
from medmamba_jax.training.selection import advance, warning_of_ties


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


def warnings_of_ties(metric, *values):
    """Epoch -> warning, where the validation metric has these values and AUC and loss stay."""
    rows, progress, warnings = [], Progress(), {}
    for epoch, value in enumerate(values, 1):
        validation = {"auc": 0.5, "loss": 1.0} | {metric: value}
        progress = advance(progress, metric, validation)
        rows.append({"epoch": epoch, f"val/{metric}": value})
        if warning := warning_of_ties(rows, metric, progress):
            warnings[epoch] = warning
    return warnings


def test_a_metric_that_stays_at_its_best_is_named_with_the_tie_breakers():
    warnings = warnings_of_ties("balanced_accuracy", 0.25, 0.25, *[1 / 3] * 11)
    assert list(warnings) == [5, 8]  # 3 and 6 epochs at one value; 12 are not reached
    assert "val balanced accuracy has been 0.3333 for 3 epochs" in warnings[5]
    assert "tie-breaker chooses" in warnings[5] and "(AUC, then loss)" in warnings[5]


def test_an_auc_that_stays_at_its_best_leaves_the_choice_to_the_loss():
    assert "(loss)" in warnings_of_ties("auc", 1.0, 1.0, 1.0)[3]


def test_a_metric_that_stays_below_its_best_is_not_chosen_by_tie_breakers():
    assert not warnings_of_ties("accuracy", 0.9, 0.7, 0.7, 0.7)
