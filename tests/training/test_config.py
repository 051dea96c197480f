"""The configuration: what goes in comes out, and what is wrong is named."""

import dataclasses
import json

import pytest

import medmamba_jax as mm
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.reading.order import SAMPLERS, Sampler
from medmamba_jax.metrics import METRICS, Metric
from medmamba_jax.runs.workdir import MAY_CHANGE, flat
from medmamba_jax.training.config import Config, ModelConfig, TrainConfig
from medmamba_jax.training.losses import LOSSES, Loss
from medmamba_jax.training.optimizer import OPTIMIZERS, SCHEDULES


def test_json_round_trip():
    config = mm.default_config()
    config.train.step_epochs = (3, 4)
    config.model.remat = True
    config.data.csv.label_column = "a,b"
    built = Config.of(config)
    assert Config.from_dict(json.loads(json.dumps(built.to_dict()))) == built
    assert Config.of(built) is built


def test_a_missing_key_has_its_default_and_an_unknown_one_can_be_collected():
    assert Config.from_dict({"train": {"epochs": 3}}) == Config(train=TrainConfig(epochs=3))
    ignored = []
    built = DataConfig.from_dict({"csv": {"seperator": ";"}, "roots": 1}, ignored=ignored)
    assert built == DataConfig() and sorted(ignored) == ["data.csv.seperator", "data.roots"]
    with pytest.raises(mm.UserError, match=r"but not \['eval'\]"):
        Config.from_dict({"eval": {}})


def test_a_config_file_sets_values_of_every_type_that_a_field_takes():
    config = mm.default_config()
    config.model.remat = (True, False, False, True)
    config.data.image_size = (64, 96)
    config.train.lr = 1
    built = Config.of(config)
    assert built.model.architecture(2).remat == (True, False, False, True)
    assert built.data.image_size == (64, 96) and built.train.lr == 1
    config.train.epochs = "many"
    with pytest.raises(mm.UserError, match=r"train\.epochs must be a positive integer"):
        Config.of(config)


@pytest.mark.parametrize("section", ["model", "data", "train"])
def test_unknown_key_is_named(section):
    values = mm.default_config().to_dict()
    values[section]["lrr"] = 1
    with pytest.raises(mm.UserError, match=rf"{section} has no key 'lrr'"):
        Config.from_dict(values)


def test_model_errors_name_the_section():
    with pytest.raises(mm.UserError, match=r"model\.drop_path_rate must be in \[0, 1\)"):
        ModelConfig(drop_path_rate=2.0)


def test_a_variant_sets_what_the_section_leaves_open(monkeypatch):
    monkeypatch.setitem(mm.VARIANTS, "mine", {"depths": (1, 1), "dims": (8, 16), "d_state": 8})
    config = mm.default_config()
    config.model.variant = "mine"
    assert Config.of(config).model.architecture(3).d_state == 8
    config.model.d_state = 4
    assert Config.of(config).model.architecture(3).d_state == 4


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    built = Config(train=TrainConfig(init_from="runs/a"), data=DataConfig(path="images"))
    resolved = built.with_absolute_paths()
    assert resolved.train.init_from == str(tmp_path / "runs/a")
    assert resolved.data.path == str(tmp_path / "images")
    assert Config().with_absolute_paths() == Config()


def test_what_may_change_exists():
    assert set(MAY_CHANGE) <= set(flat(Config().to_dict()))


# Table -> section, field, and a row that a user's script would add.
TABLES = {
    "model.variant": (mm.VARIANTS, {"depths": (1,), "dims": (8,)}),
    "train.loss": (LOSSES, Loss({"multiclass": lambda logits, labels, class_weights: labels})),
    "train.optimizer": (OPTIMIZERS, OPTIMIZERS["adam"]),
    "train.schedule": (SCHEDULES, SCHEDULES["constant"]),
    "train.sampler": (SAMPLERS, Sampler(lambda split, seed: int, "in order")),
    "train.best_metric": (METRICS, Metric("mine", lambda outputs: 1.0)),
    "data.augmentation": (POLICIES, POLICIES["none"]),
}


@pytest.mark.parametrize("setting", TABLES)
def test_the_choices_are_those_of_the_tables(setting, monkeypatch):
    table, row = TABLES[setting]
    section, field = setting.split(".")
    cls = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig}[section]
    for name in table:
        assert getattr(cls(**{field: name}), field) == name
    with pytest.raises(mm.UserError, match=rf"{section}\.{field} must be one of"):
        cls(**{field: "mine"})
    monkeypatch.setitem(table, "mine", row)
    assert getattr(cls(**{field: "mine"}), field) == "mine"


BAD = {
    "accumulate": 0,
    "shard_state": 1,
    "epochs": 0,
    "batch_size": -1,
    "seed": -1,
    "init_from": 3,
    "freeze": 3,
    "lr_backbone_factor": 0.0,
    "lr": 0.0,
    "optimizer": "sgd",
    "weight_decay": -1.0,
    "decay": "some",
    "schedule": "linear",
    "warmup_epochs": 200.0,
    "step_epochs": 3,
    "step_factor": 0.0,
    "clip_norm": float("nan"),
    "ema_decay": 1.0,
    "loss": "hinge",
    "focal_gamma": -1.0,
    "label_smoothing": 1.0,
    "class_weights": "auto",
    "pos_weights": 2.0,
    "sampler": "weighted",
    "best_metric": "f2",
    "patience": -1,
    "checkpoint_minutes": -1.0,
    "nonfinite": "skip:0",
    "keep_every": -1,
}


@pytest.mark.parametrize("field", BAD)
def test_bad_value_is_named(field):
    with pytest.raises(ValueError, match=rf"train\.{field} must be"):
        TrainConfig(**{field: BAD[field]})


def test_a_setting_of_another_loss_is_refused():
    with pytest.raises(
        ValueError,
        match=r"train\.focal_gamma must be 2.0 with train\.loss = 'auto', which does not read",
    ):
        TrainConfig(focal_gamma=1.0)


def test_every_field_is_checked():
    assert set(BAD) == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("loss", ["focal", "ordinal"])
def test_smoothing_is_of_cross_entropies(loss):
    with pytest.raises(
        ValueError, match=rf"label_smoothing must be 0.0 with train\.loss = '{loss}'"
    ):
        TrainConfig(loss=loss, label_smoothing=0.1)


def test_classes_are_evened_out_once():
    with pytest.raises(ValueError, match=r"class_weights must be 'none' with train\.sampler"):
        TrainConfig(sampler="balanced", class_weights="balanced")
