"""The pages in a real browser, opened from disk."""

import dataclasses
import json
import urllib.parse

import pytest
from PIL import Image

import medmamba_jax as mm
from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.report.page import write_report
from medmamba_jax.report.summary import write_summary_report
from medmamba_jax.runs.gallery import Entry
from medmamba_jax.runs.summaries import summarize

NAMES = ("<img src=x onerror=alert(1)>", r"$\frac{1}{2}$", "a_long_name_of_a_class" * 4)


WIDTHS = (380, 768, 1000, 1100, 1400)
# Finds elements that are wider than their place: a reader sees them cut, or has to scroll.
CUT = """
document.querySelectorAll('details').forEach(e => e.open = true);
const right = document.documentElement.clientWidth;
return [...document.querySelectorAll('body *:not(svg *)')].filter(e =>
  e.getBoundingClientRect().right > right + 1 && !e.closest('thead')
  || e.matches('.wide') && e.scrollWidth > e.clientWidth + 1
).map(e => e.outerHTML.slice(0, 200));
"""
# Finds headings of one short word that are broken over two lines.
BROKEN = """
return [...document.querySelectorAll('thead th.n')].filter(e => {
  const text = document.createRange();
  text.selectNodeContents(e);
  return /^\\w{1,6}$/.test(e.textContent) && text.getClientRects().length > 1;
}).map(e => e.outerHTML);
"""


def draw_gallery(folder):
    """Writes two pictures with hostile names, as `write_gallery` does."""
    folder.mkdir()
    for name in ("plain.jpg", "map.jpg"):
        Image.new("RGB", (320, 200), "grey").save(folder / name)
    entry = Entry("near", NAMES[0], *NAMES[:2], NAMES[1], 0.5, "plain.jpg", "map.jpg", (320, 200))
    content = {"epoch": 2, "entries": [dataclasses.asdict(entry)]}
    (folder / "gallery.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("task", "names"),
    [
        pytest.param("multiclass", ("NORMAL", "PNEUMONIA"), marks=pytest.mark.nightly),
        pytest.param(
            "multiclass", [f"a longer name of class {i}" for i in range(7)], marks=pytest.mark.slow
        ),
        pytest.param("multilabel", (*NAMES, "effusion"), marks=pytest.mark.slow),
    ],
    ids=["two", "seven", "labels"],
)
def test_no_column_is_cut(browser, write_run, page_only, monkeypatch, tmp_path, task, names):
    monkeypatch.setattr("medmamba_jax.report.page.draw_figures", lambda *_: {})
    runs = [
        write_run(tmp_path / name, names, task=task, elsewhere=["clinic_B"], lr=lr)
        for name, lr in (("run", 1e-3), ("of_another_learning_rate" * 3, 1e-4))
    ]
    page = write_report(runs[0], mm.Config().to_dict())
    summarize(runs, tmp_path / "all", settings=ResultsConfig(resamples=20))
    for path in (page, write_summary_report(tmp_path / "all")):
        browser.get(path.as_uri())
        for width, media in (*((width, "screen") for width in WIDTHS), (680, "print")):
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
            assert browser.execute_script(CUT) == [], (path, width, media)
            broken = browser.execute_script(BROKEN) if media == "screen" else []
            assert broken == [], (path, width)
    for command in ("setEmulatedMedia", "clearDeviceMetricsOverride"):
        browser.execute_cdp_cmd(f"Emulation.{command}", {})


@pytest.mark.slow
def test_pages_open_from_disk(browser, write_run, page_only, tmp_path):
    run = write_run(tmp_path / 'a "run" <b>', NAMES, elsewhere=["clinic B"])
    draw_gallery(run / "results" / "test_gallery")
    page = write_report(run, mm.Config().to_dict())
    summarize([run], tmp_path / "all", settings=ResultsConfig(resamples=20))
    pages = [page, run / "evaluations" / "clinic B" / "report.html"]
    pages.append(write_summary_report(tmp_path / "all"))
    for log in ("browser", "performance"):
        browser.get_log(log)
    grounds = set()
    for page in pages:
        for width, scheme in ((380, "light"), (1400, "dark")):
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
            )
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            browser.get(page.as_uri())
            script = "return document.documentElement.scrollWidth"
            assert browser.execute_script(script) <= width, (page, width)
            grounds.add(
                browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            )
            sizes = browser.execute_script(
                "return [...document.querySelectorAll('img, svg')].map(e => ["
                "e.getBoundingClientRect().width, e.getBoundingClientRect().height,"
                " e.tagName == 'IMG' ? e.naturalWidth : 1])"
            )
            assert sizes and all(min(size) > 0 for size in sizes)
            text = browser.execute_script("return document.body.textContent")
            assert NAMES[1] in text or page == pages[-1]
    assert len(grounds) == 2  # a light one and a dark one
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    # A request that a page makes, and every message of its console, would be here.
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        message["params"]["request"]["url"]
        for message in asked
        if message["method"] == "Network.requestWillBeSent"
    }
    files = {urllib.parse.unquote(url) for url in urls if not url.startswith("data:")}
    assert files == {f"file://{page}" for page in pages}
