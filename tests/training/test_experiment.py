import json

import pytest

import medmamba_jax as mm
from medmamba_jax.data.reading import order
from medmamba_jax.training import config as train_config
from medmamba_jax.training import metrics, objective
from medmamba_jax.training.config import TrainConfig


def test_json_round_trip():
    config = mm.default_config()
    config.train.step_epochs = (3, 4)
    config.model.remat = True
    experiment = mm.Experiment.from_config_dict(config)
    assert mm.Experiment.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment


@pytest.mark.parametrize("section", ["model", "data", "train"])
def test_unknown_key_is_named(section):
    values = mm.default_config().to_dict()
    values[section]["lrr"] = 1
    with pytest.raises(ValueError, match="lrr"):
        mm.Experiment.from_dict(values)


def test_model_errors_name_the_section():
    values = mm.default_config().to_dict()
    values["model"]["drop_path_rate"] = 2.0
    with pytest.raises(ValueError, match=r"model\.drop_path_rate must be in \[0, 1\)"):
        mm.Experiment.from_dict(values)


BAD = {
    "epochs": 0,
    "batch_size": -1,
    "seed": -1,
    "lr": 0.0,
    "optimizer": "sgd",
    "weight_decay": -1.0,
    "decay": "some",
    "schedule": "linear",
    "warmup_epochs": 200.0,
    "step_epochs": 3,
    "step_factor": 0.0,
    "clip_norm": float("nan"),
    "loss": "hinge",
    "focal_gamma": -1.0,
    "label_smoothing": 1.0,
    "class_weights": "auto",
    "pos_weights": 2.0,
    "sampler": "weighted",
    "best_metric": "f2",
    "patience": -1,
}


@pytest.mark.parametrize("field", BAD)
def test_bad_value_is_named(field):
    with pytest.raises(ValueError, match=rf"train\.{field} must be"):
        TrainConfig(**{field: BAD[field]})


def test_a_setting_of_another_loss_is_refused():
    with pytest.raises(ValueError, match=r"train\.focal_gamma must be left alone .* 'auto'"):
        TrainConfig(focal_gamma=1.0)


def test_every_field_is_checked():
    assert set(BAD) == set(TrainConfig.__dataclass_fields__)


def test_names_in_the_configuration_are_those_of_the_tables():
    assert set(train_config.LOSSES) == {"auto", *objective.LOSSES}
    assert train_config.SAMPLERS == tuple(order.SAMPLERS)
    logged = {name for names in metrics.LOGGED.values() for name in names}
    assert set(train_config.BEST_METRICS) == logged


@pytest.mark.parametrize("loss", ["focal", "ordinal"])
def test_smoothing_is_of_cross_entropies(loss):
    with pytest.raises(ValueError, match=rf"label_smoothing must be 0 with train\.loss = '{loss}'"):
        TrainConfig(loss=loss, label_smoothing=0.1)


def test_classes_are_evened_out_once():
    with pytest.raises(ValueError, match=r"class_weights must be 'none' with train\.sampler"):
        TrainConfig(sampler="balanced", class_weights="balanced")
