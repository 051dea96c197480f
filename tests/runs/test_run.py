"""A run's folder as a trained model: reading it, predicting with it, evaluating it."""

import dataclasses
import json
import pathlib
import shutil
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

import medmamba_jax as mm
from medmamba_jax.assessment.calibration import calibrate
from medmamba_jax.models import abstract_model, split_model
from medmamba_jax.runs import read_trained_weights
from medmamba_jax.runs import run as run_module
from medmamba_jax.runs.description import FILE
from medmamba_jax.runs.digests import write_digests

FORMAT_1 = pathlib.Path(__file__).parent / "run_format_1.tar.gz"


@pytest.fixture
def run(trained):
    return mm.load_run(trained[0])


def test_evaluation_repeats_the_numbers_of_the_run_bit_for_bit(run, images, trained):
    _, results = trained
    assert run.evaluate(images) == results
    for name, split in (("val", images.splits["val"]), ("test", images.splits["test"])):
        found = mm.evaluate(run.predictor, split)
        assert found == {key: results[name][key] for key in found}


def test_probabilities_by_class_name_are_those_of_the_network(run, images):
    """Against the module called on arrays that NumPy prepares."""
    split = images.splits["test"]
    table = run.predictor.predict(split)
    pixels = np.stack([split.read(i) for i in range(len(split))])
    inputs = (np.repeat(pixels[..., None], 3, -1) / 255 - 0.5) / 0.5
    logits = np.asarray(jax.jit(run.predictor.module())(inputs.astype(np.float32)))
    np.testing.assert_allclose(table, softmax(logits.astype(np.float64), axis=1), rtol=1e-5)
    assert table.shape == (9, 2)

    one = run.predictor.predict(split.read(0))
    assert list(one) == ["dark", "bright"] == list(run.description.class_names)
    np.testing.assert_allclose(list(one.values()), table[0], rtol=1e-5)


@pytest.mark.slow
def test_paths_bytes_and_arrays_are_one_image(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    path = tmp_path / "scan.png"
    Image.fromarray(pixels).save(path)
    predictor = run.predictor
    expected = predictor.predict(pixels)
    for image in (path, str(path), path.read_bytes()):
        assert predictor.predict(image) == expected
    several = predictor.predict([path, str(path), path.read_bytes(), pixels])
    np.testing.assert_allclose(several, [list(expected.values())] * 4, rtol=1e-5)
    stack = np.stack([pixels[..., None]] * 2)
    np.testing.assert_allclose(predictor.predict(stack), several[:2], rtol=1e-5)


def test_an_image_that_cannot_be_read_is_named(run, tmp_path):
    with pytest.raises(mm.UserError, match=r"nowhere\.png"):
        run.predictor.predict(str(tmp_path / "nowhere.png"))
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(mm.UserError, match=r"text\.png"):
        run.predictor.predict([tmp_path / "text.png"])


def test_reading_a_run_draws_no_weights(trained, monkeypatch):
    def draws(*arguments, **options):
        raise AssertionError("a random number was drawn")

    shapes = abstract_model(mm.load_run(trained[0]).description.model)
    monkeypatch.setattr(run_module, "abstract_model", lambda config: shapes)
    for name in ("uniform", "normal", "bernoulli", "split"):
        monkeypatch.setattr(jax.random, name, draws)
    predictor = mm.load_run(trained[0]).predictor
    params, _, _ = split_model(shapes)
    assert jax.tree.map(np.shape, predictor.params) == jax.tree.map(np.shape, params)


def test_features_are_what_the_head_reads(run, images):
    split = images.splits["val"]
    features = run.predictor.features(split)
    head = jax.device_get(run.predictor.params["head"])
    logits = features.astype(np.float64) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(run.predictor.logits(split), logits, rtol=1e-4, atol=1e-5)
    assert features.shape == (10, 16)


def test_evaluation_needs_no_training_images(run, images, trained):
    """Neither a training split nor an optimiser: a set of val and test alone."""
    splits = {name: images.splits[name] for name in ("val", "test")}
    assert run.evaluate(dataclasses.replace(images, splits=splits)) == trained[1]


def test_evaluation_takes_only_what_may_change(run, images):
    with pytest.raises(mm.UserError, match=r"takes data\.mean from the run"):
        run.evaluate(images, changes={"data.mean": (0.4,)})
    with pytest.raises(mm.UserError, match=r"takes train\.epochs from the run"):
        run.evaluate(images, changes={"train.epochs": 3})


def test_labels_of_another_task_or_other_classes(run, images):
    marks = mm.LabelledImages(np.zeros((4, 32, 32), np.uint8), np.zeros((4, 2), np.float32))
    with pytest.raises(mm.UserError, match="for multiclass labels, and the images have multilabel"):
        mm.evaluate(run.predictor, marks)
    others = mm.Dataset(
        {
            name: dataclasses.replace(split, class_names=("light", "dark"))
            for name, split in images.splits.items()
        }
    )
    with pytest.raises(mm.UserError, match=r"classes were \('dark', 'bright'\), are"):
        run.evaluate(others)


def copy_as(checkpoints, epoch, new, **progress):
    """Copies a checkpoint to one of another epoch."""
    folder = shutil.copytree(checkpoints / str(epoch), checkpoints / str(new))
    path = folder / "progress" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epoch": new, **progress}))
    write_digests(folder)


def test_a_checkpoint_that_a_better_one_replaces_meanwhile(trained, tmp_path, monkeypatch):
    """As a run does that goes on training while its folder is read."""
    folder = shutil.copytree(trained[0], tmp_path / "run")
    real, epochs = run_module._read, []

    def replaced(checkpoints, best, description, parallel):
        epochs.append(best.epoch)
        if len(epochs) == 1:
            copy_as(folder / "checkpoints", best.epoch, 3, best_epoch=3)
            shutil.rmtree(folder / "checkpoints" / str(best))
        return real(checkpoints, best, description, parallel)

    monkeypatch.setattr(run_module, "_read", replaced)
    run = mm.load_run(folder)
    assert run.predictor.class_names == ("dark", "bright")
    assert len(epochs) == 2 and epochs[0] != epochs[1] == run.epoch


def test_a_best_checkpoint_that_is_gone_is_not_replaced_by_the_latest(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    best = mm.load_run(folder).epoch
    checkpoints = folder / "checkpoints"
    copy_as(checkpoints, best, 9)
    shutil.rmtree(checkpoints / str(best))
    with pytest.raises(mm.UserError, match=rf"of epoch {best}, is gone from .* restore it"):
        _ = mm.load_run(folder).predictor


@pytest.mark.parametrize("lost", ["params", "progress"])
def test_a_damaged_checkpoint_is_one_line(trained, tmp_path, lost):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / str(mm.load_run(folder).epoch) / lost)
    with pytest.raises(
        mm.UserError, match=rf"checkpoint 2 in .* is damaged \({lost}/.* is missing"
    ):
        _ = mm.load_run(folder).predictor


@pytest.mark.parametrize("image", [None, [None], 3, (x for x in [1])])
def test_what_is_no_image(run, image):
    with pytest.raises(mm.UserError, match=r"predict takes paths|image 0 is a"):
        run.predictor.predict(image)


def test_no_checkpoint_yet(trained, tmp_path):
    shutil.copy(trained[0] / FILE, tmp_path / FILE)
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        _ = mm.load_run(tmp_path).predictor
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        _ = mm.load_run(str(tmp_path)).predictor


def test_a_run_of_format_1_is_evaluated_as_it_was_then(images, tmp_path):
    """Trained and evaluated by commit 7e4a3f5 on `images`; the optimiser's state is left out."""
    with tarfile.open(FORMAT_1) as archive:
        archive.extractall(tmp_path, filter="data")
    expected = json.loads((tmp_path / "results" / "val.json").read_text())
    assert "format" not in json.loads((tmp_path / FILE).read_text())
    found = mm.load_run(tmp_path).evaluate(images)["val"]
    for key in ("accuracy", "auc", "loss", "f1", "confusion_matrix", "num_examples"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-5, err_msg=key)
    written = json.loads((tmp_path / "results" / "val.json").read_text())
    assert written == found  # the images are the run's own, so its results are written again


def test_own_objects_are_evaluated_whole(run, images):
    class Own:
        class_names = ("dark", "bright")

        def __len__(self):
            return 9

        def __getitem__(self, index):
            split = images.splits["test"]
            return {"image": split.read(index), "label": split.labels[index]}

    for data in (Own(), {"test": Own()}):
        results = run.evaluate(data)
        assert list(results) == ["test"] and results["test"]["num_examples"] == 9
        found = mm.evaluate(run.predictor, images.splits["test"])
        assert results["test"]["loss"] == found["loss"]
    with pytest.raises(mm.UserError, match=r"the keys \['tset'\]"):
        run.evaluate({"tset": Own()})


def test_other_images_that_were_trained_on_are_told(run, images, caplog):
    train, test = images.splits["train"], images.splits["test"]
    pixels = np.concatenate([[train.read(2), train.read(5)], [test.read(i) for i in range(4)]])
    others = mm.LabelledImages(pixels, np.arange(6) % 2, images.class_names)
    run.evaluate({"test": others})
    assert "2 of 6 test images are training images of" in caplog.text
    assert "image 0; image 1" in caplog.text


def test_labels_that_name_no_class(run):
    pixels = np.zeros((4, 32, 32), np.uint8)
    with pytest.raises(mm.UserError, match="run from 0 to 2"):
        mm.evaluate(run.predictor, mm.LabelledImages(pixels, [0, 1, 2, 0]))


def test_weights_that_are_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a run's folder or a file of weights"):
        read_trained_weights(tmp_path / "runs" / "nope")


def test_results_of_other_images_are_not_kept_as_the_runs(images, run_of_two_epochs):
    folder = run_of_two_epochs / "results"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = {"val": images.splits["test"]}
    results = mm.load_run(run_of_two_epochs).evaluate(dataclasses.replace(images, splits=others))
    assert results["val"]["num_examples"] == 9 and "test" not in results
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert json.loads(before["val.json"])["num_examples"] == 10


def test_the_calibration_is_of_the_best_checkpoint_and_the_validation_split(
    run, images, run_of_two_epochs, caplog
):
    outputs = run.predictor.outputs(images.splits["val"])
    assert run.calibration == calibrate(outputs, run.epoch)
    assert run.predictor.calibration == run.calibration
    results = json.loads((run.workdir / "results" / "test.json").read_text())
    assert results["calibrated"]["temperature"] == run.calibration.temperature
    assert results["intervals"]["units"] == 9 and set(results["prediction_sets"]) == {"0.9", "0.95"}
    val = json.loads((run.workdir / "results" / "val.json").read_text())
    assert "thresholds" not in val and "prediction_sets" not in val  # they were chosen on it

    path = run_of_two_epochs / "calibration.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "epoch": 40}))
    other = mm.load_run(run_of_two_epochs)
    assert other.predictor.calibration is None
    assert "was fitted with the checkpoint of epoch 40" in caplog.text
    path.unlink()
    again = mm.load_run(run_of_two_epochs)
    assert again.calibration is None
    again.evaluate(images)
    assert mm.load_run(run_of_two_epochs).calibration == run.calibration


def test_the_number_of_resamples_is_a_setting(run_of_two_epochs, images):
    run = mm.load_run(run_of_two_epochs)
    found = run.evaluate(images, changes={"results.resamples": 50, "results.seed": 3})
    assert found["test"]["intervals"]["resamples"] == 50 and found["test"]["intervals"]["seed"] == 3


def test_a_calibration_of_other_images_is_not_kept(run_of_two_epochs, images):
    run = mm.load_run(run_of_two_epochs)
    own = run.calibration
    val = images.splits["val"]
    turned = dataclasses.replace(val, labels=1 - val.labels)
    splits = images.splits | {"val": turned}
    found = run.evaluate(dataclasses.replace(images, splits=splits))
    assert found["test"]["calibrated"]["temperature"] != own.temperature
    assert run.calibration == own == mm.load_run(run_of_two_epochs).calibration
    alone = run.evaluate({"test": images.splits["test"]})
    assert alone["test"]["calibrated"]["temperature"] == own.temperature


def test_a_calibration_is_used_as_soon_as_it_is_fitted(run_of_two_epochs, images):
    (run_of_two_epochs / "calibration.json").unlink()
    run = mm.load_run(run_of_two_epochs)
    assert run.predictor.calibration is None
    run.evaluate(images)
    assert run.predictor.calibration is not None
