"""The files in `configs/`: each is an experiment, and those of the paper have its recipe."""

import importlib.util
import math
import pathlib
import re

import pytest

import medmamba_jax as mm
from medmamba_jax.data.public.catalogue import CATALOGUE

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
LARGE = {
    "kvasir": "kvasir",
    "fetal_planes_db": "fetal_planes_db",
    "xray": "cpn_xray",
    "pad_ufes_20": "pad_ufes_20",
}
MEDMNIST = [name for name in CATALOGUE if name.endswith("mnist")]
PUBLIC = LARGE | {name: name for name in MEDMNIST}


def module(file):
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def config_of(file, *argument):
    return mm.Config.of(module(file).get_config(*argument))


@pytest.mark.parametrize("file", LARGE)
def test_recipe_of_the_large_sets(file):
    full = config_of(file)
    assert full == config_of(file, "full")
    assert (full.data.name, full.data.public.splits) == (LARGE[file], "paper")
    assert full.data.image_size == 224 and full.data.augmentation == "none"
    assert full.data.allow_overlap
    assert full.model.variant == "medmamba_t"
    recipe = {
        "optimizer": "adamw",
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "batch_size": 64,
        "epochs": 150,
        "schedule": "constant",
    }
    assert {key: getattr(full.train, key) for key in recipe} == recipe
    assert full.train.patience > 0


@pytest.mark.parametrize("name", MEDMNIST)
def test_recipe_of_medmnist(name):
    full = config_of(name)
    assert full == config_of(name, "full")
    assert (full.data.name, full.data.public.splits) == (name, "paper")
    assert full.data.image_size == 224 and full.data.augmentation == "none"
    assert full.data.allow_overlap
    recipe = {
        "optimizer": "adamw",
        "lr": 1e-3,
        "batch_size": 128,
        "epochs": 100,
        "schedule": "step",
        "step_epochs": (50, 75),
        "step_factor": 0.1,
    }
    assert {key: getattr(full.train, key) for key in recipe} == recipe


@pytest.mark.parametrize("file", LARGE)
def test_docstrings_name_the_metric_that_stops_early(file):
    """By "auto" it is the balanced accuracy where a class is more than 3 times another."""
    counts = CATALOGUE[LARGE[file]].class_counts.values()
    uneven = max(counts) > 3 * min(counts)
    assert config_of(file).train.best_metric == "auto"
    text = " ".join(module(file).__doc__.split())
    assert ("without a better balanced accuracy in validation" in text) == uneven
    assert ("without a better validation AUC" in text) != uneven


@pytest.mark.parametrize("file", [*PUBLIC, "image_folder", "quickstart"])
def test_every_config_can_be_tried_out(file):
    full, small = config_of(file), config_of(file, "testing")
    assert (small.model.variant, small.data.image_size) == ("medmamba_nano", 32)
    assert (small.train.epochs, small.train.batch_size) == (2, 8)
    assert small.data.name == full.data.name
    with pytest.raises(ValueError, match="sizes are full and testing; got 'huge'"):
        config_of(file, "huge")


def test_every_public_set_has_a_config():
    sets = {re.sub(r"_(64|128|224)$", "", name) for name in CATALOGUE}
    assert set(PUBLIC.values()) == sets and len(sets) == 14
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*PUBLIC, "image_folder", "quickstart"}


@pytest.mark.parametrize("file", PUBLIC)
def test_docstrings_give_the_scores_of_the_catalogue(file):
    text = " ".join(module(file).__doc__.split())
    public_set = CATALOGUE[PUBLIC[file]]
    scores = public_set.scores
    sizes = " / ".join(map(str, public_set.split_sizes.values()))
    assert f"accuracy {scores.accuracy} %" in text and f"({sizes})" in text
    assert f"AUC {scores.auc:.3f}" in text and f"--config=configs/{file}.py" in text
    assert "the run only warns, since" in text and "data.allow_overlap" in text


@pytest.mark.parametrize("file", PUBLIC)
def test_docstrings_give_the_steps(file):
    train = config_of(file).train
    steps = math.ceil(CATALOGUE[PUBLIC[file]].split_sizes["train"] / train.batch_size)
    text = " ".join(module(file).__doc__.split())
    assert f"{train.epochs} epochs of {steps} steps at 224 px and batch {train.batch_size}" in text
