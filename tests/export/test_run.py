"""A run's best checkpoint as official PyTorch weights."""

import jax
import numpy as np
import pytest
from flax import nnx

import medmamba_jax as mm
from medmamba_jax.cli.convert import convert
from medmamba_jax.models import split_model
from medmamba_jax.runs import CheckpointStore, Progress, RunDescription


@pytest.mark.slow
def test_workdir_to_official_names(tmp_path):
    config = mm.MedMambaConfig(depths=(1, 2), dims=(8, 16), num_classes=3, in_channels=1)
    model = mm.MedMamba(config, rngs=nnx.Rngs(3))
    params, statistics, _ = split_model(model)
    parts = {"params": params, "statistics": statistics}
    run = tmp_path / "run"
    run.mkdir()
    RunDescription(
        config=mm.Config().to_dict(),
        model=config,
        preprocessing=mm.Preprocessing((32, 32), 1, "bilinear", (0.5,), (0.5,)),
        class_names=("a", "b", "c"),
        task="multiclass",
        best_metric="auc",
        dataset="none",
        images_sha256={},
        synthetic=True,
    ).write(run)
    with CheckpointStore(run / "checkpoints") as store:
        store.save(Progress(epoch=1, best_epoch=1), parts)
        worse = jax.tree.map(lambda x: x + 1 if x.dtype == np.float32 else x, parts)
        store.save(Progress(epoch=2, best_epoch=1), worse)

    text = convert(run, tmp_path / "best.safetensors")
    assert "depths: (1, 2)" in text
    _, loaded = mm.load_torch(tmp_path / "best.safetensors")
    expected, actual = mm.to_torch_state_dict(model), mm.to_torch_state_dict(loaded)
    assert expected.keys() == actual.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
