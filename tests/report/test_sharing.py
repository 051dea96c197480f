"""What a page and a model card say to somebody who has not made the run."""

import json
import re
import shutil

import pytest

import medmamba_jax as mm
from medmamba_jax.assessment.thresholds import RULES, RULES_IN_WORDS
from medmamba_jax.report import report_after
from medmamba_jax.report.checklist import duplicates_text
from medmamba_jax.report.facts import read_run
from medmamba_jax.report.page import write_report

DEFAULTS = mm.Config().to_dict()


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr("medmamba_jax.report.page.draw_figures", lambda *_: {})


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def written(folder):
    """Returns the text of the page and of the card."""
    write_report(folder, DEFAULTS)
    return [(folder / name).read_text() for name in ("report.html", "model_card.md")]


def test_a_page_says_what_is_undefined_if_all_images_show_one_class(write_run, tmp_path):
    folder = write_run(tmp_path / "run", ["healthy", "ill"], elsewhere=["ward"], of_one_class=True)
    main, card = written(folder)
    page = (folder / "evaluations" / "ward" / "report.html").read_text()
    text = "All images show ill. So metrics that compare classes, such as the AUC"
    assert text in page and text not in main
    assert "No image here shows healthy." in page and "Few images: 60 images. A" in page
    assert "that it calls" not in page  # PPV and NPV would be 1 and 0 for any model
    (row,) = re.findall(r'<tr data-metric="auc">.*?</tr>', page)
    assert row.endswith('undefined</span></td><td class="soft">all images show ill</td></tr>')
    (row,) = re.findall(r'<tr data-class="healthy">.*?</tr>', page, re.DOTALL)
    assert row.count("undefined") == 6  # all but the specificity
    for table in re.findall(r"<table>.*?</table>", main, re.DOTALL):
        cells = {len(re.findall("<t[dh][ >]", line)) for line in table.split("</tr>")[:-1]}
        assert len(cells) == 1
    assert "AUC undefined (\u2013)" in card.split("“ward”")[1]


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("evaluated", ["", "ward"])
def test_only_the_report_of_earlier_results_does_not_stay(
    write_run, tmp_path, monkeypatch, caplog, capsys, wanted, evaluated
):
    folder = write_run(tmp_path / "run", ["a", "b"], count=12, elsewhere=["ward", "clinic"])
    written(folder)
    of_ward = folder / "evaluations" / "ward"
    for place in (folder, of_ward):
        for name in ("of_my_own.png", "roc.pdf"):
            (place / "figures" / name).write_text("")
    before = {path for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("medmamba_jax.report.page.write_report", None)  # it fails
    report_after(folder, DEFAULTS, wanted=wanted, evaluated=evaluated, changed=False)
    assert {path for path in folder.rglob("*") if path.is_file()} == before
    report_after(folder, DEFAULTS, wanted=wanted, evaluated=evaluated)
    gone = before - set(folder.rglob("*"))
    if evaluated:
        assert gone == {of_ward / "report.html", of_ward / "figures" / "roc.pdf"}
    else:
        names = ("report.html", "model_card.md", "figures/roc.pdf")
        assert gone == {folder / name for name in names}
    said = capsys.readouterr().out
    assert f"medmamba report {folder}" in said and "other pages stay" in said
    assert ("could not be written" in caplog.text) == wanted


@pytest.mark.parametrize(
    ("policy", "place", "expected"),
    [
        ("none", "", ["The training images were not augmented."]),
        (
            "light_flip",
            "",
            ["Policy light: rotation within 7", "mirror image half", "at their own size"],
        ),
        ("strong", "device", ["within 15 degrees", "a quarter by CutMix", "in the training step"]),
        ("of_a_script", "host", ["Policy of_a_script.", "at their own size"]),
    ],
)
def test_the_checklist_says_how_and_where_images_were_augmented(
    write_run, tmp_path, policy, place, expected
):
    """An earlier version did not write the place, which was the host."""
    folder = write_run(tmp_path / "run", ["a", "b"], count=12)
    values = json.loads((folder / "run.json").read_text())
    values["config"]["data"]["augmentation"] = policy
    change(folder / "run.json", config=values["config"], augmented_on=place)
    page, _ = written(folder)
    for text in expected:
        assert text in page


def test_a_temperature_at_its_bound_is_marked(write_run, tmp_path):
    folder = write_run(tmp_path / "run", ["a", "b"], count=12)
    assert not [text for text in written(folder) if "Do not trust it" in text]
    change(folder / "calibration.json", temperature=19.98)
    results = folder / "results" / "test.json"
    change(results, calibrated=json.loads(results.read_text())["calibrated"] | {"temperature": 20})
    page, card = written(folder)
    said = "at an end of the range in which it is searched"
    assert page.count(said) == 2 and '<div class="note" role="note"><p>The temperature 20' in page
    assert card.count(said) == 2  # of the calibration, and in the list of what was done


def test_an_evaluation_elsewhere_prints_its_own_page(write_run, tmp_path, capsys):
    folder = write_run(tmp_path / "run", ["a", "b"], count=12, elsewhere=["ward"])
    report_after(folder, DEFAULTS, wanted=True, evaluated="ward")
    page = folder / "evaluations" / "ward" / "report.html"
    assert capsys.readouterr().out.split() == [str(page)] and page.is_file()


def test_an_evaluation_with_an_earlier_checkpoint_says_so(write_run, tmp_path):
    folder = write_run(tmp_path / "run", ["a", "b"], count=12, elsewhere=["old", "new"])
    change(folder / "evaluations" / "old" / "results.json", epoch=1)
    page, card = written(folder)
    old, new = (
        (folder / "evaluations" / name / "report.html").read_text() for name in ("old", "new")
    )
    said = "made with the checkpoint of epoch 1; the best one is of epoch 2 now: evaluate again"
    assert "checkpoint of epoch 1, chosen by val" in old and said in old
    assert "checkpoint of epoch 2, chosen by val" in new and "evaluate again" not in new
    assert "“old”" in page and "with the checkpoint of epoch 1" in page
    assert "“new”" in card and "“old”" not in card and "On old" not in card
    trained = "(3 of them are training images of the run): loss"
    assert f"“new” {trained}" in page and f"“old” {trained}" not in page


def test_the_best_checkpoint_is_the_one_in_the_folder(run_of_two_epochs):
    best = read_run(run_of_two_epochs).best_epoch
    assert best == json.loads((run_of_two_epochs / "results" / "test.json").read_text())["epoch"]
    for name in ("val", "test"):
        change(run_of_two_epochs / "results" / f"{name}.json", epoch=9)
    run = read_run(run_of_two_epochs)
    assert (run.main.epoch, run.best_epoch, run.calibration) == (9, best, None)
    shutil.rmtree(run_of_two_epochs / "checkpoints" / str(best))
    assert read_run(run_of_two_epochs).best_epoch == 9


def test_a_calibration_of_another_checkpoint_is_not_used(write_run, tmp_path):
    folder = write_run(tmp_path / "run", ["a", "b"], count=12)
    assert read_run(folder).calibration.epoch == 2
    change(folder / "calibration.json", epoch=1)
    assert read_run(folder).calibration is None
    assert "No temperature and no threshold was fitted" in written(folder)[1]


def test_no_absolute_path_is_shown(write_run, tmp_path):
    folder = write_run(tmp_path / "run", ["a", "b"], count=12, init_from="/home/doctor/start.pth")
    run = json.loads((folder / "run.json").read_text())
    given = {"path": "/home/doctor/scans", "split_file": "/home/doctor/s.csv"}
    run["config"]["data"].update(given | {"exclude": "C:\\doctor\\out.txt"})
    (folder / "run.json").write_text(json.dumps(run))
    for text in written(folder):
        assert "doctor" not in text and str(tmp_path) not in text
        assert "start" in text and "out" in text and "…/" in text
    assert "…/scans" in (folder / "report.html").read_text()


def test_patients_in_two_splits_are_counted(write_run, tmp_path):
    folder = write_run(tmp_path / "run", ["a", "b"], count=12)
    assert all("No patient is in two splits" in text for text in written(folder))
    table = (folder / "split.csv").read_text()
    one = table.replace("1-0", "0-0")
    for changed, said in ((one, "1 patient has"), (one.replace("2-3", "0-3"), "2 patients have")):
        (folder / "split.csv").write_text(changed)
        for text in written(folder):
            assert text.count(f"{said} images in two or more splits") == 3  # note, data, item


def test_one_pair_is_one_pair(write_run, tmp_path):
    folder = write_run(tmp_path / "run", ["a", "b"], count=12)
    assert "The run did not look for equal" in written(folder)[1]
    (folder / "duplicates.csv").write_text("first,second\na,b\n")
    assert "1 pair of equal or nearly equal images was found" in duplicates_text(read_run(folder))


def test_each_rule_has_words():
    assert RULES_IN_WORDS.keys() == RULES.keys()


def test_a_dash_without_resamples_is_explained(write_run, tmp_path):
    folder = write_run(tmp_path / "run", ["a", "b"], count=12)
    assert "the same in every resample" in written(folder)[0]
    results = json.loads((folder / "results" / "test.json").read_text())
    results["intervals"]["resamples"] = 0
    change(folder / "results" / "test.json", **results)
    page = written(folder)[0]
    assert "results.resamples is 0" in page and "the same in every resample" not in page


@pytest.mark.parametrize("content", ["{}", "[]"])
def test_damaged_results_are_named(content, write_run, tmp_path):
    folder = write_run(tmp_path / "run", ["healthy", "ill"])
    (folder / "results" / "test.json").write_text(content)
    with pytest.raises(mm.UserError, match=r"test\.json is damaged"):
        read_run(folder)
