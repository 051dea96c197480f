"""A small model of MedMamba's own blocks, and its export in safetensors."""

import jax
import pytest
from golden import recipe_model

import medmamba_jax as mm
from medmamba_jax.assessment.calibration import Calibration
from medmamba_jax.assessment.prediction_sets import SetThresholds
from medmamba_jax.exports import FORMATS, Meaning, Training
from medmamba_jax.models import split_model

CALIBRATION = Calibration(
    epoch=3,
    images=40,
    temperature=1.7,
    thresholds={"a": {"youden": 0.4, "sensitivity": None}},
    sets={"0.9": SetThresholds(0.7, [0.6, 0.7, 0.8])},
)


def on_one_device(monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)


@pytest.fixture(autouse=True)
def only_one_device(one_device):
    """Runs every test here on the first device."""


@pytest.fixture
def exact_products():
    """Matrix products in full float32, as `export` computes them, so that it compiles once."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def predictor():
    config = mm.MedMambaConfig.variant("tiny_mamba", num_classes=3, in_channels=1)
    params, statistics, _ = split_model(recipe_model(config, seed=5))
    preprocessing = mm.Preprocessing((32, 40), 1, "bicubic", (0.4,), (0.3,), (0, 900), 0, "pad")
    with pytest.MonkeyPatch.context() as monkeypatch:
        on_one_device(monkeypatch)
        return mm.Predictor(
            config,
            params,
            statistics,
            preprocessing,
            class_names=("a", "=b", "ç"),
            calibration=CALIBRATION,
        )


@pytest.fixture(scope="session")
def training():
    return Training(dataset="blobs", synthetic=True, augmentation="light_flip", epoch=3)


@pytest.fixture(scope="session")
def exported(predictor, training, tmp_path_factory):
    """The predictor's file, which no run of the model has checked; to be read only."""
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    meaning = Meaning.of(predictor, training, licence="CC BY 4.0")
    path.write_bytes(FORMATS["safetensors"].encode(predictor, meaning, path))
    return path
