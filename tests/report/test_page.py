"""The page of a run: its numbers against the results, and names that look like code."""

import dataclasses
import html.parser
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax import cli
from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.metrics import Outputs, measure
from medmamba_jax.report import report_after
from medmamba_jax.report.checklist import AUTHORS, ITEMS
from medmamba_jax.report.facts import Evaluation, read_run
from medmamba_jax.report.figures import FIGURES, draw_figures, write_figures
from medmamba_jax.report.page import write_report
from medmamba_jax.report.summary import write_summary_report
from medmamba_jax.report.wording import headline, hundred, notes
from medmamba_jax.runs.gallery import Entry
from medmamba_jax.runs.summaries import summarize

IMAGE, MATHS = "<img src=x onerror=alert(1)>", r"$\frac{1}{2}$"
NAME = '"><b onclick="x">'  # of an image in the gallery
DEFAULTS = mm.Config().to_dict()


class Parsed(html.parser.HTMLParser):
    """Every element of a page as a browser sees it, and the text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self._row = [], [], None
        self.rows = {}  # metric, or (class, metric) -> value
        self._class = self._metric = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if tag == "tr":
            self._class, self._metric = attrs.get("data-class"), attrs.get("data-metric")
        if tag == "td" and self._class is not None:
            self._metric = attrs.get("data-metric")
        if tag == "data" and self._metric:
            key = self._metric if self._class is None else (self._class, self._metric)
            self.rows.setdefault(key, float(attrs["value"]))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def hostile(write_run, tmp_path_factory):
    """A run whose names look like HTML, like mathematics, and like the end of an attribute."""
    folder = tmp_path_factory.mktemp("runs") / 'a "run" <b>'
    write_run(folder, [IMAGE, MATHS, "plain"], elsewhere=['clinic "B" <i>'])
    entry = Entry("near", NAME, NAME, NAME, NAME, 0.5, "plain.jpg", "map.jpg", (8, 8))
    gallery = folder / "results" / "test_gallery"
    gallery.mkdir()
    content = {"epoch": 2, "entries": [dataclasses.asdict(entry)]}
    (gallery / "gallery.json").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("medmamba_jax.report.page.write_figures", lambda *_: None)
        write_report(folder, DEFAULTS)
    return folder


def test_numbers_are_those_of_the_results(hostile):
    places = {"report.html": "results/test.json"}
    places['evaluations/clinic "B" <i>/report.html'] = 'evaluations/clinic "B" <i>/results.json'
    for page, results in places.items():
        shown = Parsed(hostile / page).rows
        found = json.loads((hostile / results).read_text())
        known = {k: v for k, v in found.items() if isinstance(v, float)}
        assert {k: v for k, v in shown.items() if isinstance(k, str)} == known
        by_class = {k: v for k, v in shown.items() if not isinstance(k, str)}
        assert len(by_class) == 3 * 7
        for (class_name, metric), value in by_class.items():
            assert value == found["per_class"][class_name][metric]


def test_names_that_look_like_code_do_nothing(hostile):
    for page in hostile.rglob("report.html"):
        parsed = Parsed(page)
        tags = {tag for tag, _ in parsed.elements}
        assert not tags & {"script", "iframe", "object", "b", "i", "form"}
        pictures = [attrs for tag, attrs in parsed.elements if tag == "img"]
        own = page.parent == hostile  # the page with the gallery
        assert [a["src"] for a in pictures] == ["", ""] * own  # whose files are not there
        assert parsed.text.count(NAME) == 4 * own
        assert not [a for _, attrs in parsed.elements for a in attrs if a.startswith("on")]
        links = {a["href"] for _, a in parsed.elements if a.get("href")}
        assert not [link for link in links if ":" in link and not link.startswith("data:")]
        assert parsed.texts.count(IMAGE) >= 5  # in tables and in the SVG
        assert parsed.texts.count(MATHS) >= 5
        assert 'a "run" <b>' in parsed.text
    card = (hostile / "model_card.md").read_text()
    assert "<img" not in card and "<b>" not in card
    tables = re.findall(r"(?m)^\|.*\|$(?:\n\|.*\|$)*", card)
    assert len(tables) == 4
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


def test_links_lead_to_the_other_pages(hostile):
    for page in hostile.rglob("report.html"):
        links = [a["href"] for tag, a in Parsed(page).elements if tag == "a"]
        others = [unquote(link) for link in links if not link.startswith("#")]
        assert len(others) == 1
        assert (page.parent / others[0]).resolve() in set(hostile.resolve().rglob("report.html"))


def test_every_reference_inside_the_page_has_one_target(hostile):
    text = (hostile / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    references = re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text)
    assert len(references) > 50
    assert not set(references) - set(ids)


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(hostile, page_only):
    before = (hostile / "report.html").read_bytes()
    write_report(hostile, DEFAULTS)
    assert (hostile / "report.html").read_bytes() == before


def test_each_figure_is_a_file_for_a_paper(hostile, tmp_path):
    run = read_run(hostile)
    figures = draw_figures(run, run.main)
    assert set(figures) == set(FIGURES) - {"decision_curve"}  # which is about two classes
    (tmp_path / "decision_curve.pdf").touch()  # of an earlier report
    write_figures(tmp_path, {"roc": figures["roc"]})
    assert {path.name for path in tmp_path.iterdir()} == {"roc.png", "roc.pdf"}
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "roc.pdf").read_bytes().startswith(b"%PDF")


def test_the_table_of_what_was_done_leaves_to_the_authors_what_a_run_cannot_know(hostile):
    text = Parsed(hostile / "report.html").text
    for item in ITEMS:
        assert item.topic in text
    assert text.count(AUTHORS) >= sum(item.answer is None for item in ITEMS)
    assert "60 train of 30 patients, 60 val of 30 patients, 60 test of 30 patients." in text


def test_settings_that_differ_are_shown(hostile):
    text = Parsed(hostile / "report.html").text
    differing = text[text.index("that differ") : text.index("All settings")]
    assert "train.batch_size 8 64" in differing and "model.variant tiny medmamba_t" in differing
    assert "train.optimizer" not in differing


@pytest.mark.slow
def test_a_multi_label_run_on_val_alone(write_run, page_only, tmp_path):
    write_run(
        tmp_path / "run", ["left", "right"], task="multilabel", splits=("val",), synthetic=True
    )
    write_report(tmp_path / "run", DEFAULTS)
    text = Parsed(tmp_path / "run" / "report.html").text
    assert "SYNTHETIC" in text and "chose the checkpoint" in text
    assert "Few images: 60 images" in text
    assert "left" in text and "Confusion matrix" not in text and "Decision curve" in text
    assert "Of 100 without it" in text


def test_headline_says_shares_as_numbers_out_of_100(tmp_path):
    labels = np.repeat([0, 1], [50, 200])
    said = labels.copy()
    said[:5] = 1  # 10 of 100 healthy ones wrong
    said[50:56] = 0  # 6 of 200 ill ones missed
    outputs = Outputs("multiclass", ("healthy", "ill"), labels, np.eye(2)[said] * 3)
    results = measure(outputs) | {
        "intervals": {"per_class": {"ill": {"sensitivity": [0.9412, 0.985]}}, "metrics": {}}
    }
    first, second, third = headline(Evaluation("test", tmp_path, "", results, False))
    assert first == "Of 100 images with ill the model recognises 97 (95 % interval 94 to 98)."
    assert second == (
        "Of 100 images with healthy the model recognises 90 (45 of 50 here; no interval)."
    )
    assert "calls ill, 97 are ill; of 100 that it calls healthy, 88 are healthy" in third
    assert "(80 of 100)" in third
    assert [hundred(x) for x in (0, 0.004, 0.5, 0.996, 1)] == [
        *("0", "fewer than 1", "50", "more than 99", "100")
    ]


def test_notes_name_what_is_missing(write_run, tmp_path):
    write_run(tmp_path / "run", ["a", "b"], patients=False, count=30, elsewhere=["x"])
    run = read_run(tmp_path / "run")
    found = " ".join(notes(run, run.main))
    assert "30 images, 15 with a, 15 with b" in found and "Patients are not known" in found
    assert "chose the checkpoint" not in found
    assert "3 of these images are training images" in " ".join(notes(run, run.elsewhere[0]))


@pytest.mark.slow
def test_early_results_without_intervals_have_a_page(write_run, page_only, tmp_path):
    folder = write_run(tmp_path / "run", ["a", "b"])
    for path in (folder / "results").glob("*.json"):
        values = json.loads(path.read_text())
        for key in ("intervals", "thresholds", "calibrated", "prediction_sets"):
            values.pop(key, None)
        path.write_text(json.dumps(values))
    for name in ("versions.json", "split.csv", "calibration.json", "metrics.jsonl"):
        (folder / name).unlink()
    for path in (folder / "results").glob("*.csv"):
        path.unlink()
    write_report(folder, DEFAULTS)
    assert "without intervals" in Parsed(folder / "report.html").text


def test_a_failure_is_a_warning(tmp_path, caplog):
    report_after(tmp_path, DEFAULTS, wanted=True)
    assert f"medmamba report {tmp_path}" in caplog.text
    report_after(tmp_path / "none", DEFAULTS, wanted=False)
    assert "none" not in caplog.text


@pytest.mark.slow
def test_a_summary_has_a_page_with_links_to_its_runs(write_run, page_only, tmp_path):
    runs = [write_run(tmp_path / f"seed_{seed}", ["a", "b"], seed=seed) for seed in (0, 1)]
    other = write_run(tmp_path / IMAGE, ["a", "b"], lr=3e-3)
    write_report(runs[0], DEFAULTS)
    output = tmp_path / "sum <b>"
    summary = summarize([*runs, other], output, settings=ResultsConfig(resamples=20))
    write_summary_report(output)
    page = Parsed(output / "report.html")
    assert not {tag for tag, _ in page.elements} & {"img", "b"}
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert links == ["../seed_0/report.html"]  # the only run with a page
    values = [float(a["value"]) for tag, a in page.elements if tag == "data"]
    for model in summary["models"]:
        assert {entry["value"] for entry in model["metrics"].values()} - {None} <= set(values)


def test_commands_write_the_pages(write_run, page_only, tmp_path, capsys):
    run, output = write_run(tmp_path / "run", ["a", "b"], count=12), tmp_path / "all"
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert cli.main(["summarize", str(run), f"--output={output}"]) == 0
    assert str(output / "report.html") in capsys.readouterr().out
    (output / "report.html").unlink()
    assert cli.main(["report", str(output)]) == 0
    assert (output / "report.html").exists()


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
