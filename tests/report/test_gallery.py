"""Which images a report shows, and their pictures."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import medmamba_jax as mm
from medmamba_jax.evaluation import labelled_outputs
from medmamba_jax.metrics import Outputs
from medmamba_jax.report.facts import read_run
from medmamba_jax.report.page import write_report
from medmamba_jax.runs.gallery import OF_A_KIND, Entry, choose, read_gallery, write_gallery


def test_confident_mistakes_and_near_decisions_by_hand():
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.51, 0.49], [0.2, 0.8], [0.95, 0.05], [0.7, 0.3]])
    outputs = Outputs("multiclass", ("a", "b"), np.array([1, 1, 0, 0, 0, 0]), np.log(p))
    assert choose(outputs) == [
        *(("mistake", 0, 0), ("mistake", 3, 1)),
        *(("near", 2, 0), ("near", 1, 1), ("near", 5, 0), ("near", 4, 0)),
    ]


def test_of_a_multi_label_set_unknown_labels_do_not_count():
    p = np.array([[0.99, 0.4], [0.3, 0.52], [0.05, 0.1]])
    labels = np.array([[np.nan, 1], [0, 1], [1, np.nan]])
    outputs = Outputs("multilabel", ("a", "b"), labels, np.log(p / (1 - p)))
    assert choose(outputs) == [("mistake", 2, 0), ("mistake", 0, 1), ("near", 1, 1)]


def test_many_mistakes_are_cut_off():
    rng = np.random.default_rng(0)
    outputs = Outputs("multiclass", ("a", "b"), np.arange(80) % 2, rng.normal(size=(80, 2)))
    kinds = [kind for kind, _, _ in choose(outputs)]
    assert kinds == ["mistake"] * OF_A_KIND + ["near"] * OF_A_KIND
    wrong = np.flatnonzero(outputs.predicted != outputs.labels)
    p = outputs.probabilities.max(1)
    assert choose(outputs)[0][1] == wrong[p[wrong].argmax()]


@pytest.fixture
def with_pictures(one_device, run_of_two_epochs, images):
    """A trained run with pictures of its test images."""
    run = mm.load_run(run_of_two_epochs)
    outputs = labelled_outputs(run.predictor, images.splits["test"])
    folder = run_of_two_epochs / "results" / "test_gallery"
    write_gallery(folder, run.predictor, images.splits["test"], outputs, run.epoch)
    return run_of_two_epochs, outputs, folder


def test_pictures_of_a_trained_model(with_pictures, page_only, images):
    workdir, outputs, folder = with_pictures
    epoch = read_run(workdir).best_epoch
    entries, test = read_gallery(folder, epoch), images.splits["test"]
    chosen = choose(outputs)
    assert [test.names.index(entry.name) for entry in entries] == [row for _, row, _ in chosen]
    for entry, (_, row, of) in zip(entries, chosen, strict=True):
        assert entry.label == test.class_names[test.labels[row]]
        assert entry.answer == entry.explained == test.class_names[of]
        assert entry.p == outputs.probabilities[row, of]
        plain, heat = (Image.open(folder / name) for name in (entry.image, entry.heat))
        assert plain.size == heat.size == entry.size
        shown = np.asarray(plain.convert("L").resize((32, 32), Image.Resampling.BOX), float)
        assert np.abs(shown - test.read(row)).mean() < 15  # enlarged, and compressed as JPEG
        assert np.abs(np.asarray(plain, float) - np.asarray(heat)).mean() > 1
    assert read_gallery(folder, epoch + 1) == []  # of another checkpoint
    before = {path: path.read_bytes() for path in folder.iterdir()}
    write_report(workdir, mm.Config().to_dict())
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 * len(entries)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_a_multi_label_map_explains_the_class_that_is_wrong(
    marked_images, config, one_device, tmp_path
):
    split = marked_images.splits["test"]
    trained = mm.start_run(config(), tmp_path / "run", marked_images)
    with trained:
        predictor = trained.predictor()
        logits = np.where(np.arange(2) == np.arange(9)[:, None] % 2, 3.0, -3.0)
        outputs = Outputs("multilabel", split.class_names, split.labels, logits)
        write_gallery(tmp_path / "gallery", predictor, split, outputs, 1)
    entries = read_gallery(tmp_path / "gallery", 1)
    assert {entry.explained for entry in entries} == {"left", "right"}
    for entry in entries:
        row, of = split.names.index(entry.name), split.class_names.index(entry.explained)
        shows = "shows" if split.labels[row, of] == 1 else "does not show"
        assert entry.label == f"{shows} {entry.explained}"
        assert entry.label != entry.answer or entry.kind == "near"


def test_a_gallery_shows_no_file_of_another_folder(tmp_path):
    folder, secret = tmp_path / "gallery", tmp_path / "x.jpg"
    folder.mkdir()
    for path in (secret, folder / "plain.jpg", folder / "map.jpg"):
        Image.new("RGB", (8, 8)).save(path)
    (folder / "link.jpg").symlink_to(secret)
    names = ["plain.jpg", "../x.jpg", str(secret), "link.jpg", "..", "..\\x.jpg", ""]
    entry = Entry("near", "n", "a", "a", "a", 0.5, "plain.jpg", "map.jpg", (8, 8))
    entries = [
        dataclasses.asdict(entry) | {key: name} for name in names for key in ("image", "heat")
    ]
    (folder / "gallery.json").write_text(json.dumps({"epoch": 2, "entries": entries}))
    found = read_gallery(folder, 2)
    assert [(e.image, e.heat) for e in found] == [
        ("plain.jpg", "map.jpg"),
        ("plain.jpg", "plain.jpg"),
    ]
