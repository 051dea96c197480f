"""Training and evaluation end with a report, and a report that fails does no harm."""

import dataclasses
import json
import re

import pytest

import medmamba_jax as mm
from medmamba_jax.runs.elsewhere import evaluate_elsewhere
from medmamba_jax.runs.gallery import write_empty_gallery
from medmamba_jax.runs.run import has_results


def with_report(config):
    results = dataclasses.replace(config.results, report=True, resamples=20)
    return dataclasses.replace(config, results=results)


def test_training_ends_with_a_report(
    config, images, run_of_two_epochs, one_device, page_only, capsys
):
    (run_of_two_epochs / "results" / "test.json").unlink()  # so that results are written
    mm.train(with_report(config(epochs=2)), run_of_two_epochs, images)
    page = run_of_two_epochs / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    text = page.read_text()
    assert "SYNTHETIC" in text and "Few images: 9 images" in text
    assert text.count("data:image/jpeg;base64,") == 2 * 6  # no mistake, six near ones
    assert (run_of_two_epochs / "model_card.md").read_text().startswith("# Model card: run")
    assert not (run_of_two_epochs / "results" / "val_gallery").exists()


def test_results_stay_if_pictures_and_page_fail(
    config, images, run_of_two_epochs, one_device, monkeypatch, caplog
):
    def fail(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr("medmamba_jax.runs.gallery.write_gallery", fail)
    monkeypatch.setattr("medmamba_jax.report.page.write_report", fail)
    (run_of_two_epochs / "results" / "test.json").unlink()
    found = mm.train(with_report(config(epochs=2)), run_of_two_epochs, images)
    stored = json.loads((run_of_two_epochs / "results" / "test.json").read_text())
    assert stored == json.loads(json.dumps(found["test"]))
    assert len(re.findall("no memory.*the results are complete", caplog.text)) == 2
    # A run that starts again does not try again for ever.
    run, settings = mm.load_run(run_of_two_epochs), with_report(config(epochs=2)).results
    assert has_results(run.workdir, run.description, run.epoch, settings)
    assert not (run_of_two_epochs / "report.html").exists()


def test_what_makes_results_complete(config, run_of_two_epochs, one_device):
    run, settings = mm.load_run(run_of_two_epochs), config(epochs=2).results
    settings = dataclasses.replace(settings, report=True)
    pictures = run_of_two_epochs / "results" / "test_gallery"

    def complete():
        return has_results(run.workdir, run.description, run.epoch, settings)

    pictures.mkdir(exist_ok=True)  # a kill has left it, before its table was written
    (pictures / "gallery.json").unlink(missing_ok=True)
    assert not complete()
    write_empty_gallery(pictures, run.epoch + 1)
    assert not complete()
    write_empty_gallery(pictures, run.epoch)
    assert complete()
    calibration = run_of_two_epochs / "calibration.json"
    fitted = calibration.read_text()
    other = json.dumps(json.loads(fitted) | {"epoch": run.epoch + 1})
    for content, expected in ((other, False), ("{", False), (fitted, True)):
        calibration.write_text(content)
        assert complete() == expected
    calibration.unlink()
    assert not complete()


@pytest.mark.slow
def test_results_are_written_again_where_their_settings_changed(
    config, images, run_of_two_epochs, one_device, monkeypatch
):
    path = run_of_two_epochs / "results" / "test.json"
    pictures = run_of_two_epochs / "results" / "test_gallery"
    monkeypatch.setattr(
        "medmamba_jax.runs.gallery.write_gallery",
        lambda folder, predictor, images, outputs, epoch: write_empty_gallery(folder, epoch),
    )
    monkeypatch.setattr("medmamba_jax.report.page.write_report", lambda *_: "page")
    for changes in ({"resamples": 7}, {"resamples": 7, "seed": 3}, {"report": True}):
        settings = config(epochs=2)
        results = dataclasses.replace(settings.results, **{"resamples": 20, **changes})
        settings = dataclasses.replace(settings, results=results)
        found = mm.train(settings, run_of_two_epochs, images)
        stored = json.loads(path.read_text())
        assert stored == json.loads(json.dumps(found["test"]))
        used = {name: stored["intervals"][name] for name in ("resamples", "seed")}
        assert used == {"resamples": results.resamples, "seed": results.seed}
        assert pictures.exists() == results.report
        written = path.stat().st_mtime_ns
        mm.train(settings, run_of_two_epochs, images)
        assert path.stat().st_mtime_ns == written


@pytest.mark.nightly
def test_training_images_elsewhere_are_counted(images, run_of_two_epochs, one_device):
    run = mm.load_run(run_of_two_epochs)
    found = evaluate_elsewhere(run, images.splits["train"].take([0, 1, 2]), "again")
    assert found["training_images"] == 3
    assert evaluate_elsewhere(run, images.splits["test"], "new")["training_images"] == 0
    assert not (run_of_two_epochs / "evaluations" / "new" / "gallery").exists()  # report=False
