"""Whose a workdir is; nothing is trained."""

import dataclasses
import json

import pytest

from medmamba_jax.runs import RunDescription
from medmamba_jax.runs.description import FILE
from medmamba_jax.training.setup import prepare
from medmamba_jax.training.workdir import claim


def test_more_epochs_need_a_schedule_that_does_not_know_the_last(experiment, images, tmp_path):
    def description(**changes):
        return prepare(experiment(**changes), tmp_path, images).description

    claim(tmp_path, description(epochs=1, schedule="cosine"), started=False)
    with pytest.raises(ValueError, match=r"train\.epochs was 1, is 2"):
        claim(tmp_path, description(epochs=2, schedule="cosine"), started=True)
    claim(tmp_path, description(epochs=1, schedule="cosine"), started=True)

    claim(tmp_path, description(epochs=1), started=False)
    claim(tmp_path, description(epochs=2), started=True)


def test_how_images_travel_may_change(experiment, images, tmp_path):
    def description(**changes):
        options = experiment()
        data = dataclasses.replace(options.data, **changes)
        return prepare(dataclasses.replace(options, data=data), tmp_path, images).description

    claim(tmp_path, description(), started=False)
    other = {"cache": "memory", "cache_dir": str(tmp_path / "cache"), "num_workers": 3}
    claim(tmp_path, description(**other), started=True)
    with pytest.raises(ValueError, match=r"data\.resize was 'bilinear', is 'bicubic'"):
        claim(tmp_path, description(resize="bicubic"), started=True)


def test_a_run_of_before_there_were_tasks_is_refused(experiment, images, tmp_path):
    description = prepare(experiment(), tmp_path, images).description
    description.write(tmp_path)
    read = RunDescription.read(tmp_path)
    assert (read.task, read.best_metric) == ("multiclass", "auc")
    values = json.loads((tmp_path / FILE).read_text())
    del values["task"], values["best_metric"]
    (tmp_path / FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"lacks \['best_metric', 'task'\]: another version"):
        claim(tmp_path, description, started=True)
