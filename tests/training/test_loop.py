"""The loop on a tiny data set: real Orbax, real files; see plain_block.py for the model."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax import predictor
from medmamba_jax.assessment.curves import CURVES
from medmamba_jax.errors import NonFiniteLossError
from medmamba_jax.runs import CheckpointStore, Progress, RunDescription
from medmamba_jax.training import loop as loop_module
from medmamba_jax.training import start as start_module
from medmamba_jax.training.reporting import read_metrics


def losses(workdir):
    return [(row["train/loss"], row["val/loss"]) for row in read_metrics(workdir)]


@pytest.mark.filterwarnings("ignore:.*[Ss]harding.*")
@pytest.mark.parametrize(
    ("model", "count"),
    [
        pytest.param("tiny", 60, marks=pytest.mark.slow),
        pytest.param("tiny_mamba", 200, marks=pytest.mark.nightly),
    ],
)
def test_continuing_equals_never_stopping(config, images, leaves, tmp_path, model, count):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    mm.train(config(model, epochs=2, ema_decay=0.9), straight, images)
    for epochs in (1, 2):
        mm.train(config(model, epochs=epochs, ema_decay=0.9), stopped, images)
    assert losses(straight) == losses(stopped) and len(losses(straight)) == 2
    expected, actual = leaves(straight, 2), leaves(stopped, 2)
    assert expected.keys() == actual.keys() and len(expected) > count
    for name, x in expected.items():
        np.testing.assert_array_equal(actual[name], x, err_msg=name)
    assert losses(straight)[0] != losses(straight)[1]


@pytest.fixture
def one_trace_each(monkeypatch):
    """Fails where a step is traced, and so compiled, more than once."""
    chex.clear_trace_counter()
    predictor._compiled.cache_clear()
    for module, name in ((start_module, "train_step"), (predictor, "forward")):
        limited = chex.assert_max_traces(getattr(module, name), n=1)
        monkeypatch.setattr(module, name, limited)
    yield
    predictor._compiled.cache_clear()


def test_what_a_run_leaves_behind(config, images, tmp_path, capsys, one_trace_each):
    results = mm.train(config(epochs=2), tmp_path, images)

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
    assert json.loads((tmp_path / "run.json").read_text())["config"]["train"]["epochs"] == 2
    assert not (tmp_path / "config.json").exists()
    assert json.loads((tmp_path / "versions.json").read_text())["jax"] == jax.__version__
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} >= {"2", str(best["epoch"])}
    printed = capsys.readouterr().out
    predictor_now = mm.load_run(tmp_path).predictor
    parameters = sum(x.size for x in jax.tree.leaves(predictor_now.params))
    assert "best by     val auc (auto, as training classes have 10 images each)" in printed
    assert "SYNTHETIC" in printed and f"{parameters:,}" in printed and "'stepwise'" in printed
    assert printed.index("compiling") < printed.index("epoch 1/2")

    assert mm.load_run(tmp_path).evaluate(images) == results


@pytest.mark.nightly
def test_one_and_eight_devices_give_the_same_losses(config, images, trained, tmp_path, monkeypatch):
    monkeypatch.undo()
    assert len(jax.devices()) == 8
    mm.train(config(epochs=1), tmp_path, images)
    one, eight = np.array(losses(trained[0])[:1]), np.array(losses(tmp_path))
    np.testing.assert_allclose(eight[:, 0], one[:, 0], rtol=2e-5)
    # Biases before a BatchNorm have a gradient of round-off, whose sign Adam turns into a whole
    # step; training does not see them, evaluation with running statistics does.
    np.testing.assert_allclose(eight[:, 1], one[:, 1], rtol=1e-3)
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["device"].startswith("8 x")


def test_a_batch_that_devices_cannot_share(config, images, tmp_path, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="multiple of the 8 devices"):
        mm.train(config(batch_size=12), tmp_path, images)


@pytest.mark.slow
def test_non_finite_loss_names_the_step_and_frees_the_workdir(config, images, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"step [2-4]: loss") as error:
        mm.train(config(lr=1e30), tmp_path, images)
    assert "train.lr" in str(error.value)
    with CheckpointStore(tmp_path / "checkpoints") as store:
        assert store.latest() is None
    assert mm.train(config(epochs=1), tmp_path, images)["test"]["epoch"] == 1


@pytest.mark.slow
def test_patience_stops_early_and_an_unpredicted_class_is_told(
    config, images, tmp_path, monkeypatch, capsys
):
    real = loop_module.evaluate
    metric = iter([0.9, 0.8, 0.7, 0.6, 0.5])

    def worsening(*args, **options):
        per_class = {
            "dark": {"num_predicted": 0, "num_examples": 5},
            "bright": {"num_predicted": 10, "num_examples": 5},
        }
        return real(*args, **options) | {"auc": next(metric), "per_class": per_class}

    monkeypatch.setattr(loop_module, "evaluate", worsening)
    results = mm.train(config(epochs=5, patience=2), tmp_path, images)
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert results["val"]["epoch"] == 1
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "3", "LATEST"}
    lines = capsys.readouterr().out.splitlines()
    (place,) = (i for i, line in enumerate(lines) if line.startswith("warning:"))
    assert "not predicted 'dark' for 3 epochs (5 validation" in lines[place]
    assert lines[place - 1].startswith("epoch 3/5")
    assert lines[place + 1] == (
        "stopped early: no better checkpoint by val auc for 2 epochs (train.patience), since"
        " epoch 1"
    )


@pytest.mark.slow
def test_multilabel_from_training_to_evaluation(config, marked_images, tmp_path, capsys):
    options = {"batch_size": 8, "pos_weights": "balanced", "lr": 3e-3}
    results = mm.train(config(epochs=2, **options), tmp_path, marked_images)
    printed = capsys.readouterr().out
    assert "binary_cross_entropy; pos_weights 1, 1" in printed
    assert "epoch 2/2 | train loss" in printed and "label accuracy" in printed
    assert "of known" in printed

    rows, best = read_metrics(tmp_path), results["val"]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert (best["task"], best["best_metric"]) == ("multilabel", "auc")
    for key in ("loss", "label_accuracy", "subset_accuracy", "auc", "average_precision", "f1"):
        assert best[key] == rows[best["epoch"] - 1][f"val/{key}"]
    known = ~np.isnan(marked_images.splits["val"].labels)
    assert [row["num_known"] for row in best["per_class"].values()] == known.sum(0).tolist()
    assert json.loads((tmp_path / "results" / "test.json").read_text()) == results["test"]

    run = mm.load_run(tmp_path)
    assert (run.description.task, run.description.class_names) == ("multilabel", ("left", "right"))
    assert run.evaluate(marked_images) == results
    with mm.start_run(config(epochs=3, **options), tmp_path, marked_images) as longer:
        assert longer.progress.epoch == 2 and longer.state.step == rows[-1]["step"]
        assert longer.progress.best_values["auc"] == best["auc"]

    classes = mm.LabelledImages(
        np.zeros((9, 32, 32), np.uint8), np.arange(9) % 2, marked_images.class_names
    )
    others = mm.Dataset(dict.fromkeys(("train", "val", "test"), classes))
    with pytest.raises(mm.UserError, match="the labels were multilabel, are multiclass"):
        run.evaluate(others)


def test_the_sampler_of_the_configuration_draws_the_images(config, images, tmp_path):
    labels = [0] * 16 + [1] * 4
    train = dataclasses.replace(images.splits["train"], labels=labels)
    uneven = dataclasses.replace(images, splits=images.splits | {"train": train})
    with mm.start_run(config(sampler="balanced"), tmp_path, uneven) as run:
        run.progress = Progress(1, 1)
        with loop_module.batches_of(run) as batches:
            assert [sum(next(batches)["label"]) for _ in range(4)] == [4] * 4


@pytest.mark.slow
def test_image_weights_change_training_and_are_told(config, images, trained, tmp_path, capsys):
    train = images.splits["train"]
    train = dataclasses.replace(train, weights=np.where(np.arange(20) % 2, 0.25, 8))
    weighted = dataclasses.replace(images, splits=images.splits | {"train": train})
    mm.train(config(epochs=1), tmp_path, weighted)
    assert "weights     of images, in training: 0.25..8\n" in capsys.readouterr().out
    # Round-off changes a loss by a millionth.
    assert not np.isclose(losses(tmp_path)[0][0], losses(trained[0])[0][0], rtol=1e-3)
    with pytest.raises(ValueError, match="the images of split 'train' changed"):
        mm.train(config(epochs=1), tmp_path, images)


def test_another_config_may_not_take_the_workdir(config, images, run_of_two_epochs):
    with pytest.raises(ValueError, match=r"train\.lr was 0\.001, is 0\.01"):
        mm.train(config(lr=0.01), run_of_two_epochs, images)


@pytest.mark.parametrize("count", [8, 9])  # fewer, and other pixels with the same labels
def test_other_images_may_not_take_the_workdir(config, images, run_of_two_epochs, count):
    pixels = np.zeros((count, 32, 32), np.uint8)
    other = mm.LabelledImages(pixels, np.arange(count) % 2, images.class_names)
    changed = dataclasses.replace(images, splits=images.splits | {"test": other})
    with pytest.raises(ValueError, match="images of split 'test' changed"):
        mm.train(config(epochs=3), run_of_two_epochs, changed)


def test_images_too_small_for_the_patches(config, images, tmp_path):
    large = dataclasses.replace(config().model, patch_size=32)
    with pytest.raises(mm.UserError, match=r"data\.image_size is 32x32 px and must be at least 64"):
        mm.train(dataclasses.replace(config(), model=large), tmp_path, images)


def test_lines_of_an_epoch_without_checkpoint_are_written_again(config, images, run_of_two_epochs):
    path = run_of_two_epochs / "metrics.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    stale = second.replace('"epoch": 2,', '"epoch": 3,')
    path.write_text(first + second + stale + '{"epoch": 4, "tra')
    mm.train(config(epochs=3), run_of_two_epochs, images)
    rows = read_metrics(run_of_two_epochs)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[1]["train/loss"] != rows[2]["train/loss"]


def test_missing_split_and_single_class_validation(config, images, tmp_path):
    splits = {name: split for name, split in images.splits.items() if name != "val"}
    with pytest.raises(ValueError, match="lacks the split 'val'"):
        mm.train(config(), tmp_path, dataclasses.replace(images, splits=splits))
    one = mm.LabelledImages(np.zeros((4, 32, 32), np.uint8), [1, 1, 1, 1], images.class_names)
    with pytest.raises(ValueError, match="two classes in the validation split"):
        mm.train(
            config(), tmp_path, dataclasses.replace(images, splits=images.splits | {"val": one})
        )


@pytest.mark.slow
def test_without_a_test_split_val_is_reported(config, images, tmp_path, capsys, caplog):
    splits = {name: images.splits[name] for name in ("train", "val")}
    dataset = dataclasses.replace(images, splits=splits)
    results = mm.train(config(epochs=1), tmp_path, dataset)
    run = mm.load_run(tmp_path)
    assert list(results) == ["val"] and run.evaluate(dataset) == results
    written = {path.name for path in (tmp_path / "results").iterdir()}
    assert written == {"val.json", *(f"val_{name}.csv" for name in ("predictions", *CURVES))}
    assert "no test images: the run reports the metrics of the validation images" in caplog.text
    assert "images      SYNTHETIC, 20 train, 10 val, 32x32 px" in capsys.readouterr().out


@pytest.mark.parametrize("lost", [True, False])
def test_a_split_that_comes_or_goes_is_another_run(config, images, trained, tmp_path, lost):
    run = shutil.copytree(trained[0], tmp_path / "run")
    less = dataclasses.replace(images, splits={k: images.splits[k] for k in ("train", "val")})
    if not lost:  # as if the run had had no test images
        description = RunDescription.read(run)
        digests = {k: v for k, v in description.images_sha256.items() if k != "test"}
        dataclasses.replace(description, images_sha256=digests).write(run)
    expected = "the split 'test' is missing" if lost else "there was no split 'test'"
    with pytest.raises(ValueError, match=expected):
        mm.train(config(epochs=3), run, less if lost else images)


def test_one_process_at_a_time_trains_in_a_workdir(config, images, tmp_path):
    with mm.start_run(config(), tmp_path, images):
        with pytest.raises(
            mm.UserError, match=r"another process is training in .* another --workdir"
        ):
            mm.start_run(config(), tmp_path, images)
    with mm.start_run(config(), tmp_path, images):
        pass


def test_a_failed_start_frees_the_workdir(config, images, run_of_two_epochs):
    for _ in range(2):
        with pytest.raises(mm.UserError, match=r"train\.lr was 0\.001, is 0\.01"):
            mm.start_run(config(lr=0.01), run_of_two_epochs, images)


def test_a_config_that_is_none(tmp_path):
    with pytest.raises(mm.UserError, match=r"a config is a ConfigDict, .* got a dict"):
        mm.train({"model": {}}, tmp_path)


def test_fewer_epochs_than_the_run_has_write_nothing(config, images, run_of_two_epochs):
    def written():
        paths = [path for path in run_of_two_epochs.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    before = written()
    results = mm.train(config(epochs=1), run_of_two_epochs, images)
    assert written() == before and results["val"]["num_examples"] == 10


def test_a_workdir_that_cannot_be_written_is_found_before_any_image_is_read(config, tmp_path):
    class Unreadable:
        class_names = ("a", "b")

        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise AssertionError("an image was read")

    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        mm.train(config(), tmp_path / "file" / "run", Unreadable())


@pytest.mark.slow
def test_a_validation_that_is_not_finite_names_the_epoch(config, images, tmp_path, monkeypatch):
    """Inside the loop's transfer guard, which lets no value reach the host unasked."""
    real = loop_module.train_epoch

    def broken(run, *args):
        found = real(run, *args)
        params = jax.tree.map(lambda x: (x - x) / (x - x), run.state.params)
        run.state = dataclasses.replace(run.state, params=params)
        return found

    monkeypatch.setattr(loop_module, "train_epoch", broken)
    with pytest.raises(NonFiniteLossError, match=r"validation after epoch 1: .* 10 of 10 images"):
        mm.train(config(), tmp_path, images)


@pytest.mark.slow
def test_the_moving_average_is_saved_and_evaluated(config, images, tmp_path):
    results = mm.train(config(epochs=2, ema_decay=0.9, lr=3e-3), tmp_path, images)
    run = mm.load_run(tmp_path)
    assert run.evaluate(images) == results
    with CheckpointStore(tmp_path / "checkpoints") as store:
        epoch = store.best().epoch
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        saved = {
            part: reader.restore((tmp_path / "checkpoints" / str(epoch) / part).resolve())
            for part in ("params", "average")
        }
    kernel = np.asarray(run.predictor.params["head"]["kernel"])
    np.testing.assert_array_equal(kernel, saved["average"]["params"]["head"]["kernel"])
    assert np.abs(kernel - np.asarray(saved["params"]["head"]["kernel"])).max() > 1e-6


@pytest.mark.slow
def test_frozen_stages_and_their_statistics_do_not_move(config, images, tmp_path):
    frozen = config(epochs=1, freeze="patch_embed.*,stages.0.*")
    with mm.start_run(frozen, tmp_path, images) as run:
        before = jax.device_get((run.state.params, run.state.statistics))
        mm.fit(run)
        after = jax.device_get((run.state.params, run.state.statistics))
    for old, new in zip(before, after, strict=True):
        chex.assert_trees_all_equal(_stage(old, "0"), _stage(new, "0"))
        changed = jax.tree.map(
            lambda x, y: not np.array_equal(x, y), _stage(old, "1"), _stage(new, "1")
        )
        assert all(jax.tree.leaves(changed))
    chex.assert_trees_all_equal(before[0]["patch_embed"], after[0]["patch_embed"])


def _stage(tree, name):
    return next(stage for key, stage in tree["stages"].items() if str(key) == name)


@pytest.mark.nightly
def test_the_checkpoint_before_a_spike_stays(config, images, tmp_path, monkeypatch, capsys):
    """Also if checkpoints inside the epoch of the spike come after it."""
    real = loop_module.EpochOutputs.measured
    loss = iter([0.7, 0.6, 0.5, 2.0, 0.5])

    def measured(outputs):
        found, others = real(outputs)
        return found | {"loss": next(loss)}, others

    class Saving(loop_module.Watch):
        def after(self, step):
            return "save"

    monkeypatch.setattr(loop_module.EpochOutputs, "measured", measured)
    monkeypatch.setattr(loop_module, "Watch", Saving)
    mm.train(config(epochs=5, lr=1e-6), tmp_path, images)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} >= {"3", "5"}
    assert "spike above 0.6, the median of the epochs before" in capsys.readouterr().out


def _order(seed, count, rows):
    """The images that the sampler "shuffle" draws, by NumPy alone."""
    turns = [np.random.default_rng((seed, turn)).permutation(count) for turn in range(3)]
    return [int(np.concatenate(turns)[row]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("nonfinite", ["stop", "skip:1"])
def test_a_step_that_is_not_finite_is_written_down(config, images, tmp_path, capsys, nonfinite):
    train = images.splits["train"]
    bad = _order(0, 20, range(8, 16))[:2]
    weights = np.ones(20, np.float32)
    weights[bad] = 3e38  # their sum is infinite
    names = tuple(f"{i}.png" for i in range(20))
    train = dataclasses.replace(train, weights=weights, names=names)
    dataset = dataclasses.replace(images, splits=images.splits | {"train": train})
    settings = config(epochs=1, nonfinite=nonfinite)
    if nonfinite == "stop":
        with pytest.raises(NonFiniteLossError, match=r"step 2: .*nonfinite\.jsonl names the"):
            mm.train(settings, tmp_path, dataset)
    else:
        mm.train(settings, tmp_path, dataset)
        (row,) = read_metrics(tmp_path)
        assert row["skipped_steps"] == 1 and np.isfinite(row["train/loss"])
    (row,) = map(json.loads, (tmp_path / "nonfinite.jsonl").read_text().splitlines())
    assert (row["step"], row["skipped"], row["loss"]) == (2, nonfinite != "stop", "nan")
    assert row["images"] == [f"{i}.png" for i in _order(0, 20, range(8, 16))]
    # The loss is inf / inf, and its gradient is finite / inf.
    assert (row["not_finite"], row["its_norm"]) == (0, 0) and "." in row["largest_gradient"]


@pytest.mark.slow
def test_a_run_skips_no_more_steps_than_it_may(config, images, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"after 2 skipped steps \(train\.nonfinite\)"):
        mm.train(config(epochs=2, batch_size=4, lr=1e30, nonfinite="skip:2"), tmp_path, images)
    rows = list(map(json.loads, (tmp_path / "nonfinite.jsonl").read_text().splitlines()))
    assert [row["skipped"] for row in rows] == [True, True, False]
    assert all(row["not_finite"] == row["parameters"] > 0 for row in rows)
