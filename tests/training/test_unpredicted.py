import pytest

from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.unpredicted import UnpredictedClasses


def validation(**num_predicted):
    """What a validation reports of classes that 5 images each show; of "absent" none."""
    return {
        name: {"num_predicted": count, "num_examples": 0 if name == "absent" else 5}
        for name, count in num_predicted.items()
    }


def test_named_after_3_epochs_and_when_their_number_doubles():
    watch = UnpredictedClasses(TrainConfig(), "multiclass")
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
    watch = UnpredictedClasses(TrainConfig(), "multiclass")
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
    watch = UnpredictedClasses(TrainConfig(**options), task)
    *_, warning = (watch.warning(validation(a=0, b=0)) for _ in range(3))
    assert advice in warning and "'a' for 3 epochs" in warning and "'b' for 3 epochs" in warning
