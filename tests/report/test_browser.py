"""The pages in a real browser, opened from disk."""

import json

import pytest

import medmamba_jax as mm
from medmamba_jax.report.page import write_report

NAMES = ("<img src=x onerror=alert(1)>", r"$\frac{1}{2}$", "a long name of a class " * 4)


@pytest.mark.slow
def test_pages_open_from_disk_at_both_widths(browser, write_run, tmp_path):
    from test_gallery_picture import draw_gallery

    folder = write_run(tmp_path / 'a "run" <b>', NAMES, elsewhere=["clinic B"])
    draw_gallery(folder / "results" / "test_gallery")
    write_report(folder, mm.Config().to_dict())
