"""Update ratios and spikes of the loss, against NumPy and by hand."""

import numpy as np
import pytest

from medmamba_jax.runs import Progress
from medmamba_jax.training.health import (
    groups,
    is_spike,
    ratios_row,
    update_ratios,
    warning_of_spike,
    with_kept,
    with_spike,
)


def test_update_ratios_are_those_of_numpy():
    rng = np.random.default_rng(0)
    before = {
        "stages": {
            0: {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)},
            1: {"a": rng.normal(size=2)},
        },
        "head": {"kernel": rng.normal(size=(4, 2)), "bias": rng.normal(size=2)},
        "norm": {"bias": np.zeros(3)},
    }
    before = {k: _map(np.float32, v) for k, v in before.items()}
    after = _map(
        lambda x: x + np.float32(0.01) * rng.normal(size=x.shape).astype("float32"), before
    )
    row = ratios_row(before, np.asarray(update_ratios(before, after)))

    def ratio(*parts):
        old = np.concatenate([x.ravel() for x, _ in parts])
        new = np.concatenate([x.ravel() for _, x in parts])
        return np.linalg.norm(new - old) / np.linalg.norm(old)

    pairs = {
        "stages.0": [(before["stages"][0][k], after["stages"][0][k]) for k in "ab"],
        "stages.1": [(before["stages"][1]["a"], after["stages"][1]["a"])],
        "head": [(before["head"][k], after["head"][k]) for k in ("kernel", "bias")],
    }
    assert set(groups(before)) == {*pairs, "norm"}
    for name, group in pairs.items():
        np.testing.assert_allclose(row[f"update_ratio/{name}"], ratio(*group), rtol=1e-4)
    everything = [pair for group in pairs.values() for pair in group]
    everything.append((before["norm"]["bias"], after["norm"]["bias"]))
    np.testing.assert_allclose(row["update_ratio"], ratio(*everything), rtol=1e-4)
    assert row["update_ratio/norm"] is None  # Its parameters were 0, so the ratio has no value.


def _map(function, tree):
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    return function(tree)


@pytest.mark.parametrize(
    ("losses", "spike"),
    [
        ([0.7, 0.6, 0.5, 2.0], True),
        ([0.7, 2.0], False),  # too few epochs before
        ([0.7, 0.6, 2.0], False),
        ([0.7, 0.6, 0.5, 0.89], False),  # below 1.5 times the median, 0.9
        ([0.7, 0.6, 0.5, 1.19], False),  # below the median and 6 deviations of 0.1
        ([0.7, 0.6, 0.5, 1.21], True),
        ([9.0, 8.0, 7.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.8], True),  # only the last five count
        ([0.5, 0.5, 0.5, 0.7], False),  # nothing varied, and it is not 1.5 times as much
        ([0.7, 0.6, 0.5, float("inf")], True),
    ],
)
def test_what_a_spike_is(losses, spike):
    assert is_spike(losses) is spike


def test_the_checkpoint_before_a_spike_is_kept():
    rows = [{"epoch": i, "train/loss": loss} for i, loss in enumerate([0.7, 0.6, 0.5, 2.0], 1)]
    # Inside epoch 4 the checkpoint of epoch 3 was kept in any case.
    inside = with_kept(Progress(3, steps=5, kept=(1,)), 3)
    assert inside.kept == (1, 3)
    finished = Progress(4, kept=inside.kept)
    assert with_spike(finished, rows).kept == (1, 3)
    line = warning_of_spike(finished, rows)
    assert line.startswith("warning: the training loss of epoch 4 is 2, a spike above 0.6,")
    assert line.endswith("the checkpoint of epoch 3 stays: --resume=3 goes back to it")

    calm = [*rows[:3], {"epoch": 4, "train/loss": 0.4}]
    assert with_spike(finished, calm).kept == (1,) and warning_of_spike(finished, calm) is None
