"""A run on labelled images of another origin: `medmamba evaluate RUN --data=OTHER`."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, roc_auc_score

import medmamba_jax as mm
import medmamba_jax.runs.run
from medmamba_jax import cli
from medmamba_jax.assessment.curves import CURVES
from medmamba_jax.metrics import metrics_of
from medmamba_jax.runs.elsewhere import evaluate_elsewhere


@pytest.fixture
def run(run_of_two_epochs):
    return mm.load_run(run_of_two_epochs)


def folder_of(split, folder, names):
    """Writes a split as image files, whose classes have these names."""
    for row in range(len(split)):
        place = folder / names[split.labels[row]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(split.read(row)).save(place / f"{row}.png")
    return folder


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_image_of_a_folder_is_evaluated_and_the_runs_results_stay(
    run, images, tmp_path, capsys
):
    split = images.splits["test"]
    other = folder_of(split, tmp_path / "clinic", ("dark", "bright"))
    before = files(run.workdir)
    assert cli.main(["evaluate", str(run.workdir), f"--data={other}"]) == 0
    after = files(run.workdir)
    assert {path: after[path] for path in before} == before
    folder = run.workdir / "evaluations" / "clinic"
    new = {"results.json", *(f"{name}.csv" for name in ("predictions", *CURVES))}
    assert set(after) - set(before) == {folder / name for name in new}
    assert "clinic (9 images, best checkpoint by val auc: epoch" in capsys.readouterr().out

    results = json.loads((folder / "results.json").read_text())
    p = run.predictor.predict(split)
    assert results["num_examples"] == 9 and results["class_names"] == ["dark", "bright"]
    assert results["accuracy"] == pytest.approx(accuracy_score(split.labels, p.argmax(1)))
    assert results["auc"] == pytest.approx(roc_auc_score(split.labels, p[:, 1]))
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: row["label"] for row in rows}["dark/0.png"] == "dark"


def test_classes_of_other_names_are_matched_by_a_table(run, images, tmp_path):
    split = images.splits["test"]
    other = folder_of(split, tmp_path / "clinic", ("night", "day"))
    table = tmp_path / "classes.csv"
    table.write_text("other,run\nday,bright\nnight,dark\n")
    options = [f"--data={other}", f"--classes={table}", "--name=renamed"]
    assert cli.main(["evaluate", str(run.workdir), *options]) == 0
    found = json.loads((run.workdir / "evaluations" / "renamed" / "results.json").read_text())
    expected = mm.evaluate(run.predictor, split)
    assert found["auc"] == expected["auc"] and found["accuracy"] == expected["accuracy"]


def test_two_classes_may_mean_one_and_a_class_may_lack(run, images):
    split = images.splits["test"]
    pixels = np.stack([split.read(i) for i in range(9)])
    both = mm.LabelledImages(pixels, np.arange(9) % 2, ("dim", "dark"), name="night")
    found = evaluate_elsewhere(run, both, classes={"dim": "dark"})
    assert found["per_class"]["bright"]["num_examples"] == 0
    assert found["per_class"]["dark"]["num_examples"] == 9 and found["auc"] is None


def test_images_of_one_class_are_evaluated(run, images, tmp_path, capsys):
    split = images.splits["test"].take(np.flatnonzero(images.splits["test"].labels == 1))
    other = folder_of(split, tmp_path / "ill", ("dark", "bright"))
    assert [path.name for path in other.iterdir()] == ["bright"]
    assert cli.main(["evaluate", str(run.workdir), f"--data={other}"]) == 0
    assert "All images show bright. So metrics that compare classes" in capsys.readouterr().out
    found = json.loads((run.workdir / "evaluations" / "ill" / "results.json").read_text())
    p = run.predictor.predict(split)
    share = float((p.argmax(1) == 1).mean())
    dark, bright = found["per_class"].values()
    assert found["accuracy"] == bright["sensitivity"] == dark["specificity"] == share
    assert found["loss"] == pytest.approx(-np.log(p[:, 1]).mean())
    assert found["brier"] == pytest.approx(2 * (p[:, 0] ** 2).mean())
    defined = {"loss", "accuracy", "brier", "ece"}
    assert {name for name in metrics_of("multiclass") if found[name] is not None} == defined
    for_three_classes = {"top_2_accuracy", "weighted_kappa"}
    undefined = metrics_of("multiclass").keys() - defined - for_three_classes
    assert found["undefined"].keys() == undefined
    assert set(found["undefined"].values()) == {"all images show bright"}
    assert [dark[name] for name in ("sensitivity", "precision", "npv", "f1", "auc")] == [None] * 5


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--data=clinic"], "the run has no class day, but dark, bright: say which of its classes"),
        (["--data=clinic", "--classes=from.csv"], "from.csv needs the columns other and run"),
        (["--data=nowhere"], "nowhere"),
        (["--data=clinic", "--name=../x"], "'../x' is no name for a folder"),
        (["--data=clinic", "--name=a\nb"], "'a\\nb' is no name for a folder"),
        (["--name=x"], "--classes and --name are for the images of --data"),
        (["--data=clinic", "--data.num_workers=1"], "--data.num_workers is for the run's own"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    run, images, tmp_path, monkeypatch, capsys, options, problem
):
    monkeypatch.chdir(tmp_path)
    folder_of(images.splits["test"], tmp_path / "clinic", ("dark", "day"))
    (tmp_path / "from.csv").write_text("from,to\nday,bright\n")
    assert cli.main(["evaluate", str(run.workdir), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and problem in error and error.count("\n") == 1
    assert not (run.workdir / "evaluations").exists()


def test_a_place_that_cannot_be_written_to_is_found_before_an_image_is_read(
    run, images, monkeypatch
):
    (run.workdir / "evaluations").write_text("a file in the place of the folder")
    monkeypatch.setattr("medmamba_jax.runs.elsewhere.labelled_outputs", None)
    with pytest.raises(mm.UserError, match="evaluations/clinic cannot be written to"):
        evaluate_elsewhere(run, images.splits["test"], "clinic")


@pytest.mark.parametrize(
    ("reason", "error"), [("no space", "the first host stopped: no space"), ("", "called")]
)
def test_only_the_first_host_must_write(run, images, monkeypatch, reason, error):
    def called(*_, **__):
        raise mm.UserError("called")

    (run.workdir / "evaluations").write_text("another host cannot write here")
    monkeypatch.setattr("medmamba_jax.parallel.is_first_host", lambda: False)
    monkeypatch.setattr("medmamba_jax.parallel.text_of_first_host", lambda _: reason)
    monkeypatch.setattr("medmamba_jax.runs.elsewhere.labelled_outputs", called)
    monkeypatch.setattr("medmamba_jax.runs.run.labelled_outputs", called)
    with pytest.raises(mm.UserError, match=error):
        evaluate_elsewhere(run, images.splits["test"], "clinic")
    with pytest.raises(mm.UserError, match=error):
        run.evaluate(data=images)


def test_a_second_call_leaves_nothing_of_the_first(run, images, tmp_path):
    split = images.splits["test"]
    folder = run.workdir / "evaluations" / "clinic"
    evaluate_elsewhere(run, split, "clinic")
    gallery = folder / "gallery"
    gallery.mkdir(exist_ok=True)
    (gallery / "01_mistake.jpg").write_bytes(b"a picture of the first images")
    assert (folder / "roc.csv").is_file()
    evaluate_elsewhere(run, split.take(np.flatnonzero(split.labels == 0)), "clinic")
    assert not (folder / "roc.csv").exists() and not gallery.exists()  # one class has no curve


def test_frames_of_a_file_are_drawn_together(run, images):
    split = images.splits["test"]
    frames = dataclasses.replace(split, files=np.repeat(["a", "b", "c"], 3))
    found = evaluate_elsewhere(run, frames, "loops")["intervals"]
    assert found["resampled"] == "files" and found["units"] == 3
    patients = dataclasses.replace(frames, groups=np.repeat(["p", "q"], [6, 3]))
    found = evaluate_elsewhere(run, patients, "loops")["intervals"]
    assert found["resampled"] == "patients" and found["units"] == 2


@pytest.mark.nightly
def test_a_multi_label_table_may_lack_columns_and_name_them_otherwise(
    config, marked_images, tmp_path, capsys
):
    def with_a_third(split):
        labels = np.column_stack([split.labels, np.arange(len(split)) % 2]).astype(np.float32)
        return dataclasses.replace(split, labels=labels, class_names=("left", "right", "even"))

    three = {name: with_a_third(split) for name, split in marked_images.splits.items()}
    mm.train(config(epochs=1), tmp_path / "run", mm.Dataset(three))
    split = three["test"]
    lines = ["path,age,RIGHT,left"]
    for row, (left, right, _) in enumerate(split.labels):
        Image.fromarray(split.read(row)).save(tmp_path / f"{row}.png")
        marks = ["" if np.isnan(mark) else str(int(mark)) for mark in (right, left)]
        lines.append(",".join([f"{row}.png", "60", *marks]))
    table, names = tmp_path / "other.csv", tmp_path / "names.csv"
    table.write_text("\n".join(lines))
    names.write_text("other,run\nRIGHT,right\n")

    call = ["evaluate", str(tmp_path / "run"), f"--data={table}"]
    assert cli.main([*call, f"--classes={names}", "--results.report=True"]) == 0
    folder = tmp_path / "run/evaluations/other"
    assert "No image shows even" in (folder / "report.html").read_text()
    results = json.loads((folder / "results.json").read_text())
    p = mm.load_run(tmp_path / "run").predictor.predict(split)
    for i, name in enumerate(("left", "right")):
        known = ~np.isnan(split.labels[:, i])
        auc = roc_auc_score(split.labels[known, i], p[known, i])
        assert results["per_class"][name]["auc"] == pytest.approx(auc)
        assert results["per_class"][name]["num_known"] == known.sum()
    assert results["per_class"]["even"]["num_known"] == 0

    capsys.readouterr()
    assert cli.main(call) == 2  # without the other name, one column is left
    assert "has 1 column(s) of the run's classes (left, right, even)" in capsys.readouterr().err


def test_a_process_that_ends_after_the_results_leaves_no_pictures_of_others(
    run, images, monkeypatch
):
    pictures = run.workdir / "evaluations" / "clinic" / "gallery"
    pictures.mkdir(parents=True)
    (pictures / "gallery.json").write_text("of other images")

    def stop(*arguments):
        write_results(*arguments)
        raise KeyboardInterrupt

    write_results = medmamba_jax.runs.run.write_results
    monkeypatch.setattr(medmamba_jax.runs.run, "write_results", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_elsewhere(run, images.splits["test"], "clinic")
    assert (pictures.parent / "results.json").is_file() and not pictures.exists()
