"""Whose a workdir is; nothing is trained."""

import pytest

from medmamba_jax.train.setup import prepare
from medmamba_jax.train.workdir import claim


def test_more_epochs_need_a_schedule_that_does_not_know_the_last(experiment, images, tmp_path):
    def description(**changes):
        return prepare(experiment(**changes), tmp_path, images).description

    claim(tmp_path, description(epochs=1, schedule="cosine"), started=False)
    with pytest.raises(ValueError, match=r"train\.epochs was 1, is 2"):
        claim(tmp_path, description(epochs=2, schedule="cosine"), started=True)
    claim(tmp_path, description(epochs=1, schedule="cosine"), started=True)

    claim(tmp_path, description(epochs=1), started=False)
    claim(tmp_path, description(epochs=2), started=True)
