"""The line printed after an epoch."""

import pytest

from medmamba_jax.runs import Progress
from medmamba_jax.training.config import TrainConfig
from medmamba_jax.training.metrics import LOGGED
from medmamba_jax.training.reporting import epoch_line

VALUES = {
    "accuracy": 0.91,
    "label_accuracy": 0.92,
    "subset_accuracy": 0.43,
    "balanced_accuracy": 0.54,
    "auc": 0.85,
    "average_precision": 0.76,
    "f1": 0.67,
    "loss": 0.38,
}
SHOWN = {"accuracy": "91.0%", "label_accuracy": "92.0%", "auc": "0.850", "loss": "0.3800"}


@pytest.mark.parametrize("task", LOGGED)
def test_the_metric_that_chooses_is_shown_whichever_it_is(task):
    row = {"epoch": 3, "images_per_second": None}
    row |= {f"train/{name}": 0.0 for name in LOGGED[task]}
    row |= {f"val/{name}": VALUES[name] for name in LOGGED[task]}
    for metric in LOGGED[task]:
        progress = Progress(epoch=3, best_epoch=3, best_value=VALUES[metric])
        line = epoch_line(row, TrainConfig(), progress, metric)
        assert line.startswith("epoch   3/150 | ") and line.endswith(" | best")
        _, _, val, _ = line.split(" | ")
        assert SHOWN.get(metric, f"{metric} {VALUES[metric]:.3f}") in val
        assert val.count(metric) == (metric not in SHOWN or metric == "loss")
