"""`train.init_from`: a run that starts from a trained model."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from golden import recipe_model

import medmamba_jax as mm
from medmamba_jax.exports import FORMATS, Meaning
from medmamba_jax.interop import weights_to_state_dict, write_state_dict
from medmamba_jax.models.structure import by_name
from medmamba_jax.parallel import DataParallel
from medmamba_jax.training.initial_weights import initial_weights
from medmamba_jax.training.start import describe, make_spec
from medmamba_jax.training.step import init_state

HEAD = {"head.kernel", "head.bias"}
PATCHES = "patch_embed.proj.kernel"


@pytest.fixture
def official(mamba_run, tmp_path):
    """A run's weights as an official file."""
    predictor = mm.load_run(mamba_run).predictor
    path = tmp_path / "weights.safetensors"
    weights = jax.device_get((predictor.params, predictor.statistics))
    write_state_dict(weights_to_state_dict(predictor.model, *weights), path)
    return path


ONE = DataParallel((jax.devices()[0],))


@pytest.fixture
def loaded(config, images):
    """Returns a function (source, images, **changes of the model) -> tensors and their report."""

    def loaded(source, dataset=images, **changes):
        built = config("tiny_mamba", init_from=str(source))
        model = dataclasses.replace(built.model, **changes)
        description, _ = describe(dataclasses.replace(built, model=model), dataset)
        spec, _ = make_spec(built, dataset, description, ONE)
        shapes = jax.eval_shape(
            lambda: init_state(description.model, spec.optimizer, 0, average=False)
        )
        return initial_weights(str(source), shapes, description)

    return loaded


def with_classes(images, *names):
    return mm.Dataset(
        {
            split: dataclasses.replace(part, class_names=names)
            for split, part in images.splits.items()
        }
    )


def fates(report):
    return {
        fate: {n for n, f in report.fates.items() if f == fate} for fate in report.fates.values()
    }


@pytest.mark.slow
@pytest.mark.parametrize("source", ["run", "official"])
def test_with_the_runs_own_classes_validation_before_the_first_step_is_the_runs(
    config, images, mamba_run, official, tmp_path, source, capsys
):
    source = mamba_run if source == "run" else official
    values = mm.load_run(mamba_run).evaluate(images)["val"]
    expected = {key: value for key, value in values.items() if isinstance(value, (float, list))}
    new = config("tiny_mamba", init_from=str(source), seed=5)
    with mm.start_run(new, tmp_path / "new", images) as run:
        found = mm.evaluate(run.predictor(), images.splits["val"])
    assert {key: found[key] for key in expected} == expected and len(expected) > 5
    printed = capsys.readouterr().out
    assert f"initial weights from {source}" in printed and "stages.1      loaded" in printed
    saved = json.loads((tmp_path / "new" / "init_from.json").read_text())
    assert saved["init_from"] == str(source) and set(saved["tensors"].values()) == {"loaded"}


def test_on_other_classes_the_features_are_the_runs_and_only_the_head_is_new(
    config, images, trained, tmp_path
):
    others = with_classes(images, "benign", "malignant")
    old = mm.load_run(trained[0]).predictor
    with mm.start_run(config(init_from=str(trained[0])), tmp_path / "new", others) as run:
        new = run.predictor()
        features = new.features(images.splits["val"])
    np.testing.assert_array_equal(features, old.features(images.splits["val"]))
    saved = json.loads((tmp_path / "new" / "init_from.json").read_text())["tensors"]
    assert {name for name, fate in saved.items() if fate == "drawn anew"} == HEAD
    assert {name for name, fate in saved.items() if fate == "unused"} == {
        f"{name} of {trained[0]}" for name in HEAD
    }
    heads = [jax.device_get(p.params["head"]["kernel"]) for p in (old, new)]
    assert not np.isclose(*heads).any()


def test_a_head_of_more_classes_and_another_task(
    loaded, images, marked_images, mamba_run, official, caplog
):
    three = with_classes(images, "a", "b", "c")
    for source, dataset in ((mamba_run, three), (official, three), (mamba_run, marked_images)):
        tensors, report = loaded(source, dataset)
        assert fates(report)["drawn anew"] == HEAD and not HEAD & set(tensors)
    assert caplog.text == ""
    # An official file does not name its classes: two of the new set's may be the same.
    assert HEAD <= set(loaded(official, marked_images)[0])
    assert "does not name its classes, and has as many as this run" in caplog.text


def test_an_exported_file_names_its_classes(loaded, images, mamba_run, tmp_path, caplog):
    predictor, path = mm.load_run(mamba_run).predictor, tmp_path / "exported.safetensors"
    path.write_bytes(FORMATS["safetensors"].encode(predictor, Meaning.of(predictor), path))
    assert HEAD <= set(loaded(path)[0])
    assert not HEAD & set(loaded(path, with_classes(images, "benign", "malignant"))[0])
    assert caplog.text == ""


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3)])
def test_other_channels_give_the_same_features_of_a_grey_image(tmp_path, loaded, old, new):
    """Convolving three equal planes by a kernel is convolving one by its sum."""
    config = mm.MedMambaConfig.variant("tiny_mamba", num_classes=2, in_channels=old)
    model = recipe_model(config, seed=1)
    path = tmp_path / "weights.safetensors"
    write_state_dict(mm.to_torch_state_dict(model), path)
    tensors, report = loaded(path, in_channels=new)
    assert report.fates[PATCHES] == "adapted"
    grey = np.random.default_rng(0).normal(size=(32, 32))
    kernel = np.asarray(model.patch_embed.proj.kernel[...], np.float64)
    patch = grey[:4, :4, None, None]
    expected = (np.repeat(patch, old, 2) * kernel).sum((0, 1, 2))
    actual = (np.repeat(patch, new, 2) * tensors[PATCHES]).sum((0, 1, 2))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_other_numbers_of_channels_are_drawn_anew(loaded, mamba_run):
    tensors, report = loaded(mamba_run, in_channels=4)
    assert report.fates[PATCHES] == "drawn anew" and PATCHES not in tensors
    assert fates(report)["drawn anew"] == {PATCHES}


def test_another_architecture_lists_every_tensor(loaded, mamba_run):
    with pytest.raises(mm.UserError) as error:
        loaded(mamba_run, d_state=8)
    message = str(error.value)
    assert "train.init_from" in message and "model.d_state" not in message.partition("\n")[2]
    shown = [line for line in message.splitlines() if "misshapen" in line]
    names = {"A_log", "x_proj"}  # in each of the two stages
    assert len(shown) == 2 * len(names)
    with pytest.raises(mm.UserError, match="missing: stages"):
        loaded(mamba_run, variant="medmamba_t")


def test_pixels_on_another_scale_are_warned_of(loaded, trained, images, config, caplog):
    built = config(init_from=str(trained[0]))
    data = dataclasses.replace(built.data, mean=(0.4,))
    description, _ = describe(dataclasses.replace(built, data=data), images)
    spec, _ = make_spec(built, images, description, ONE)
    shapes = jax.eval_shape(lambda: init_state(description.model, spec.optimizer, 0, average=False))
    initial_weights(str(trained[0]), shapes, description)
    assert "was trained with data.mean = (0.5,), and this run has (0.4,)" in caplog.text


def test_what_is_not_loaded_is_drawn_as_without(config, images, trained, tmp_path):
    others = with_classes(images, "benign", "malignant")
    with mm.start_run(config(), tmp_path / "scratch", others) as run:
        scratch = by_name(jax.device_get(run.state.params))
    with mm.start_run(config(init_from=str(trained[0])), tmp_path / "new", others) as run:
        new = by_name(jax.device_get(run.state.params))
    for name in HEAD:
        np.testing.assert_allclose(new[name], scratch[name], rtol=1e-6)


@pytest.mark.slow
def test_resuming_needs_the_trained_model_no_more(config, images, trained, tmp_path):
    source = tmp_path / "source"
    source.symlink_to(trained[0])
    options = {"init_from": str(source), "freeze": "stages.*", "lr_backbone_factor": 0.5}
    mm.train(config(epochs=1, **options), tmp_path / "new", images)
    source.unlink()
    results = mm.train(config(epochs=2, **options), tmp_path / "new", images)
    assert results["val"]["num_examples"] == 10


def test_images_that_the_trained_model_has_seen_are_told(config, images, trained, tmp_path, caplog):
    moved = images.splits | {"train": images.splits["val"], "val": images.splits["train"]}
    others = dataclasses.replace(images, splits=moved)
    with mm.start_run(config(init_from=str(trained[0])), tmp_path / "new", others):
        pass
    assert f"20 of 20 val images are training images of {trained[0]}" in caplog.text
    assert "test images are training images" not in caplog.text


def test_nothing_to_start_from(config, images, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        mm.start_run(
            config(init_from=str(tmp_path / "nowhere.safetensors")), tmp_path / "new", images
        )
    assert not (tmp_path / "new" / "run.json").exists()


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (b"\x80\x02}q\x00.", ImportError, "pip install torch"),
        (b"version https://git-lfs.github.com/spec/v1", ValueError, "Git LFS pointer"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_before_any_image_is_read(
    config, tmp_path, monkeypatch, content, error, text
):
    monkeypatch.setitem(sys.modules, "torch", None)  # not installed
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(error, match=text):
        mm.start_run(config(init_from=str(path)), tmp_path / "new", data=object())
    assert not (tmp_path / "new").exists()
