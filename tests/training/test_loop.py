"""The loop on a tiny data set: real model, real Orbax, real files."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest
from flax import nnx

import medmamba_jax as mm
from medmamba_jax.data import Preprocessing, eval_batches
from medmamba_jax.predictor import normalize
from medmamba_jax.runs import CheckpointStore, Progress, RunDescription
from medmamba_jax.training import NonFiniteLossError, prepare_training, setup
from medmamba_jax.training import loop as loop_module
from medmamba_jax.training.reporting import read_metrics


def leaves(workdir, epoch):
    """Every array of a checkpoint, by path, as written."""
    import orbax.checkpoint as ocp

    found = {}
    for part in ("params", "variables", "training"):
        path = workdir / "checkpoints" / str(epoch) / part
        with ocp.StandardCheckpointer() as reader:
            tree = reader.restore(path.resolve())
        for key, x in jax.tree_util.tree_leaves_with_path(tree):
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                x = jax.random.key_data(x)
            found[part + jax.tree_util.keystr(key)] = np.asarray(x)
    return found


def losses(workdir):
    return [(row["train/loss"], row["val/loss"]) for row in read_metrics(workdir)]


@pytest.mark.filterwarnings("ignore:.*[Ss]harding.*")
def test_continuing_equals_never_stopping(experiment, images, run_of_two_epochs, tmp_path):
    straight, stopped = tmp_path / "straight", run_of_two_epochs
    mm.train(experiment(epochs=4), straight, images)
    mm.train(experiment(epochs=4), stopped, images)
    assert losses(straight) == losses(stopped) and len(losses(straight)) == 4
    expected, actual = leaves(straight, 4), leaves(stopped, 4)
    assert expected.keys() == actual.keys() and len(expected) > 300
    for name, x in expected.items():
        np.testing.assert_array_equal(actual[name], x, err_msg=name)
    assert losses(straight)[0] != losses(straight)[1]


def test_what_a_run_leaves_behind(experiment, images, tmp_path, capsys, monkeypatch):
    # One trace each for the whole run: nothing recompiles after the first step and batch.
    chex.clear_trace_counter()
    for name in ("train_step", "eval_step"):
        limited = chex.assert_max_traces(getattr(setup, name), n=1)
        monkeypatch.setattr(setup, name, limited)
    results = mm.train(experiment(epochs=2), tmp_path, images)

    rows = read_metrics(tmp_path)
    best = json.loads((tmp_path / "results" / "val.json").read_text())
    assert best == results["val"] and best["num_examples"] == 10
    assert best["class_names"] == ["dark", "bright"] and best["synthetic"] is True
    assert (best["task"], best["best_metric"]) == ("multiclass", "auc")
    for key in ("loss", "accuracy", "auc", "f1", "balanced_accuracy"):
        assert best[key] == rows[best["epoch"] - 1][f"val/{key}"]
    assert json.loads((tmp_path / "results" / "test.json").read_text())["num_examples"] == 9
    with (tmp_path / "results" / "test_predictions.csv").open() as file:
        assert len(list(file)) == 1 + 9
    assert json.loads((tmp_path / "config.json").read_text())["train"]["epochs"] == 2
    assert json.loads((tmp_path / "versions.json").read_text())["jax"] == jax.__version__
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} >= {"2", str(best["epoch"])}
    printed = capsys.readouterr().out
    assert "best by     val auc (auto, as training classes have from 10 to 10 images)" in printed
    assert "SYNTHETIC" in printed and "279,226" in printed and "'chunked'" in printed
    assert printed.index("compiling") < printed.index("epoch 1/2")

    monkeypatch.undo()  # evaluation on all eight devices reads what one device wrote
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    assert mm.evaluate(tmp_path, images) == results


def test_load_best_predicts_what_was_reported(images, trained):
    workdir, results = trained
    _, model = mm.load_best(workdir)
    description = RunDescription.read(workdir)
    preprocessing = description.preprocessing
    assert isinstance(preprocessing, Preprocessing)
    graphdef, state = nnx.split(model)
    predict = jax.jit(lambda s, x: nnx.merge(graphdef, s)(normalize(x, preprocessing)))
    with eval_batches(images.splits["test"], preprocessing, batch_size=9) as batches:
        batch = next(batches)
    accuracy = (predict(state, batch["image"]).argmax(1) == batch["label"]).mean()
    assert float(accuracy) == pytest.approx(results["test"]["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_one_and_eight_devices_give_the_same_losses(
    experiment, images, trained, tmp_path, monkeypatch
):
    monkeypatch.undo()
    assert len(jax.devices()) == 8
    mm.train(experiment(epochs=1), tmp_path, images)
    one, eight = np.array(losses(trained[0])[:1]), np.array(losses(tmp_path))
    np.testing.assert_allclose(eight[:, 0], one[:, 0], rtol=2e-5)
    # Biases before a BatchNorm have a gradient of round-off, whose sign Adam turns into a whole
    # step; training does not see them, evaluation with running statistics does.
    np.testing.assert_allclose(eight[:, 1], one[:, 1], rtol=1e-3)
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["device"].startswith("8 x")


def test_a_batch_that_devices_cannot_share(experiment, images, tmp_path, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="multiple of the 8 devices"):
        mm.train(experiment(batch_size=12), tmp_path, images)


@pytest.mark.slow
def test_non_finite_loss_names_the_step_and_frees_the_workdir(experiment, images, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"step [2-4]: loss") as error:
        mm.train(experiment(lr=1e30), tmp_path, images)
    assert "train.lr" in str(error.value)
    with CheckpointStore(tmp_path / "checkpoints") as store:
        assert store.latest_epoch() is None
    assert mm.train(experiment(epochs=1), tmp_path, images)["test"]["epoch"] == 1


def test_patience_stops_early_and_an_unpredicted_class_is_told(
    experiment, images, tmp_path, monkeypatch, capsys
):
    real = loop_module.evaluate_split
    metric = iter([0.9, 0.8, 0.7, 0.6, 0.5])

    def worsening(*args):
        per_class = {
            "dark": {"num_predicted": 0, "num_examples": 5},
            "bright": {"num_predicted": 10, "num_examples": 5},
        }
        return real(*args) | {"auc": next(metric), "per_class": per_class}

    monkeypatch.setattr(loop_module, "evaluate_split", worsening)
    results = mm.train(experiment(epochs=5, patience=2), tmp_path, images)
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert results["val"]["epoch"] == 1
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "3"}
    lines = capsys.readouterr().out.splitlines()
    (place,) = (i for i, line in enumerate(lines) if line.startswith("warning:"))
    assert "not predicted 'dark' for 3 epochs (5 validation" in lines[place]
    assert lines[place - 1].startswith("epoch 3/5")
    assert lines[place + 1].startswith("stopped: in 2 epochs") and "epoch 1" in lines[place + 1]


def test_multilabel_from_training_to_evaluation(experiment, marked_images, tmp_path, capsys):
    options = {"batch_size": 8, "pos_weights": "balanced", "lr": 3e-3}
    results = mm.train(experiment(epochs=2, **options), tmp_path, marked_images)
    printed = capsys.readouterr().out
    assert "binary_cross_entropy; pos_weights 1, 1" in printed
    assert "epoch 2/2 | train loss" in printed and "label acc" in printed
    assert "of known" in printed and "subset accuracy" in printed

    rows, best = read_metrics(tmp_path), results["val"]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert (best["task"], best["best_metric"]) == ("multilabel", "auc")
    for key in ("loss", "label_accuracy", "subset_accuracy", "auc", "average_precision", "f1"):
        assert best[key] == rows[best["epoch"] - 1][f"val/{key}"]
    known = ~np.isnan(marked_images.splits["val"].labels)
    assert [row["num_known"] for row in best["per_class"].values()] == known.sum(0).tolist()
    assert json.loads((tmp_path / "results" / "test.json").read_text()) == results["test"]

    description = RunDescription.read(tmp_path)
    assert (description.task, description.class_names) == ("multilabel", ("left", "right"))
    assert mm.evaluate(tmp_path, marked_images) == results
    longer = prepare_training(experiment(epochs=3, **options), tmp_path, marked_images)
    with CheckpointStore(tmp_path / "checkpoints") as store:
        state, progress = setup.start_or_resume(longer, store)
    assert progress.epoch == 2 and state.step == rows[-1]["step"]
    assert progress.best_value == best["auc"]

    classes = mm.InMemorySplit(np.zeros((9, 32, 32), np.uint8), np.arange(9) % 2)
    others = dict.fromkeys(("train", "val", "test"), classes)
    others = dataclasses.replace(marked_images, splits=others, task="multiclass")
    with pytest.raises(ValueError, match="labels were multilabel, those of 'marks' are multiclass"):
        mm.evaluate(tmp_path, others)


def test_the_sampler_of_the_configuration_draws_the_images(experiment, images, tmp_path):
    labels = [0] * 16 + [1] * 4
    train = mm.InMemorySplit(np.zeros((20, 32, 32), np.uint8), labels)
    uneven = dataclasses.replace(images, splits=images.splits | {"train": train})
    prepared = setup.prepare(experiment(sampler="balanced"), tmp_path, uneven)
    with loop_module._training_batches(prepared, Progress(1, 1, 0.5)) as batches:
        assert [sum(next(batches)["label"]) for _ in range(4)] == [4] * 4


@pytest.mark.slow
def test_image_weights_change_training_and_are_told(experiment, images, trained, tmp_path, capsys):
    train = images.splits["train"]
    pixels = [train[i]["image"] for i in range(20)]
    train = mm.InMemorySplit(pixels, train.labels, weights=np.where(np.arange(20) % 2, 0.25, 8))
    weighted = dataclasses.replace(images, splits=images.splits | {"train": train})
    mm.train(experiment(epochs=1), tmp_path, weighted)
    assert "weights     of images, in training: 0.25..8\n" in capsys.readouterr().out
    assert abs(losses(tmp_path)[0][0] - losses(trained[0])[0][0]) > 0.01
    with pytest.raises(ValueError, match="the images of split 'train' changed"):
        mm.train(experiment(epochs=1), tmp_path, images)


def test_another_experiment_may_not_take_the_workdir(experiment, images, run_of_two_epochs):
    with pytest.raises(ValueError, match=r"train\.lr was 0\.001, is 0\.01"):
        mm.train(experiment(lr=0.01), run_of_two_epochs, images)


@pytest.mark.parametrize("count", [8, 9])  # fewer, and other pixels with the same labels
def test_other_images_may_not_take_the_workdir(experiment, images, run_of_two_epochs, count):
    other = mm.InMemorySplit(np.zeros((count, 32, 32), np.uint8), np.arange(count) % 2)
    changed = dataclasses.replace(images, splits=images.splits | {"test": other})
    with pytest.raises(ValueError, match="images of split 'test' changed"):
        mm.train(experiment(epochs=3), run_of_two_epochs, changed)


def test_images_too_small_for_the_patches(experiment, images, tmp_path):
    small = dataclasses.replace(experiment(), model={"variant": "medmamba_nano", "patch_size": 8})
    with pytest.raises(ValueError, match=r"data\.image_size = 32 must be at least 64"):
        mm.train(small, tmp_path, images)


def test_evaluation_refuses_what_would_change_the_result(images, trained):
    with pytest.raises(ValueError, match=r"takes data\.mean from the run"):
        mm.evaluate(trained[0], images, changes={"data.mean": (0.4,)})


def test_lines_of_an_epoch_without_checkpoint_are_written_again(
    experiment, images, run_of_two_epochs
):
    path = run_of_two_epochs / "metrics.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    stale = second.replace('"epoch": 2,', '"epoch": 3,')
    path.write_text(first + second + stale + '{"epoch": 4, "tra')
    mm.train(experiment(epochs=3), run_of_two_epochs, images)
    rows = read_metrics(run_of_two_epochs)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[1]["train/loss"] != rows[2]["train/loss"]


def test_missing_split_and_single_class_validation(experiment, images, tmp_path):
    splits = {name: split for name, split in images.splits.items() if name != "val"}
    with pytest.raises(ValueError, match="lacks the splits"):
        mm.train(experiment(), tmp_path, dataclasses.replace(images, splits=splits))
    one = mm.InMemorySplit(np.zeros((4, 32, 32), np.uint8), [1, 1, 1, 1])
    with pytest.raises(ValueError, match="two classes in the validation split"):
        mm.train(
            experiment(), tmp_path, dataclasses.replace(images, splits=images.splits | {"val": one})
        )


def test_without_a_test_split_val_is_reported(experiment, images, tmp_path, capsys, caplog):
    splits = {name: images.splits[name] for name in ("train", "val")}
    dataset = dataclasses.replace(images, splits=splits)
    results = mm.train(experiment(epochs=1), tmp_path, dataset)
    assert list(results) == ["val"] and mm.evaluate(tmp_path, dataset) == results
    written = {path.name for path in (tmp_path / "results").iterdir()}
    assert written == {"val.json", "val_predictions.csv"}
    assert "no test images: the run reports the metrics of the validation images" in caplog.text
    assert "images      SYNTHETIC, 20 train, 10 val, 32x32 px" in capsys.readouterr().out


def test_results_of_other_images_are_not_kept_as_the_runs(images, run_of_two_epochs):
    folder = run_of_two_epochs / "results"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = {"train": images.splits["val"], "val": images.splits["test"]}
    results = mm.evaluate(run_of_two_epochs, dataclasses.replace(images, splits=others))
    assert results["val"]["num_examples"] == 9 and "test" not in results
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("lost", [True, False])
def test_a_split_that_comes_or_goes_is_another_run(experiment, images, trained, tmp_path, lost):
    run = shutil.copytree(trained[0], tmp_path / "run")
    less = dataclasses.replace(images, splits={k: images.splits[k] for k in ("train", "val")})
    if not lost:  # as if the run had had no test images
        description = RunDescription.read(run)
        digests = {k: v for k, v in description.images_sha256.items() if k != "test"}
        dataclasses.replace(description, images_sha256=digests).write(run)
    expected = "the split 'test' is missing" if lost else "there was no split 'test'"
    with pytest.raises(ValueError, match=expected):
        mm.train(experiment(epochs=3), run, less if lost else images)


def test_one_process_at_a_time_trains_in_a_workdir(experiment, images, tmp_path):
    held = prepare_training(experiment(), tmp_path, images)
    with pytest.raises(ValueError, match=r"another process is training in .* another --workdir"):
        prepare_training(experiment(), tmp_path, images)
    held.lock.close()
    prepare_training(experiment(), tmp_path, images).lock.close()


def test_a_config_that_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"a config is a ConfigDict, .* got a dict"):
        mm.train({"model": {}}, tmp_path)


def test_evaluating_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        mm.evaluate(tmp_path)
