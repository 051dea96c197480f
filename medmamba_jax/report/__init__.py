"""The page, the figures and the model card that tell a run's results."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from medmamba_jax.parallel import is_first_host, say
from medmamba_jax.runs.elsewhere import EVALUATIONS

PAGE = "report.html"
CARD = "model_card.md"
FIGURES_FOLDER = "figures"


def report_after(
    workdir: pathlib.Path, defaults: Mapping[str, Any], *, wanted: bool, evaluated: str = ""
) -> None:
    """Writes the report of a run whose results were just written, and prints the path of a page.

    A failure becomes a warning, because the results are complete. Pages of earlier results are
    removed, also if there is no new report.

    Args:
        workdir: the run's folder.
        defaults: see `page.write_report`.
        wanted: the setting `results.report`.
        evaluated: the name of the evaluation elsewhere whose page is printed; "" prints the run's.
    """

    def write() -> pathlib.Path:
        from medmamba_jax.report.page import write_report  # it draws with matplotlib

        write_report(workdir, defaults)
        return workdir / EVALUATIONS / evaluated / PAGE if evaluated else workdir / PAGE

    # Each page also shows the results of the other evaluations, so all pages are replaced.
    _replace(write, [workdir, *(workdir / EVALUATIONS).glob("*/")], wanted)


def summary_report_after(folder: pathlib.Path, *, wanted: bool) -> None:
    """Writes the page of a summary that was just written, likewise."""

    def write() -> pathlib.Path:
        from medmamba_jax.report.summary import write_summary_report

        return write_summary_report(folder)

    _replace(write, [folder], wanted)


def _replace(write: Callable[[], pathlib.Path], folders: list[pathlib.Path], wanted: bool) -> None:
    """Writes pages in place of those in the folders, of which the first one is the run's."""
    if not is_first_host():
        return
    try:
        removed = sum(map(_remove_pages, folders))
        if wanted:
            say(str(write()))
        elif removed:
            say(
                "the report of the earlier results is removed, as results.report is off;"
                f" `medmamba report {folders[0]}` writes a new one"
            )
    except Exception as error:
        logging.warning(
            "the report could not be written (%s: %s); the results are complete, and"
            " `medmamba report %s` tries again",
            type(error).__name__,
            error,
            folders[0],
        )


def _remove_pages(folder: pathlib.Path) -> bool:
    """Removes page, model card and figures from a folder; returns whether there was a page."""
    found = (folder / PAGE).is_file()
    for path in (folder / PAGE, folder / CARD, *_figures(folder)):
        path.unlink(missing_ok=True)
    return found


def _figures(folder: pathlib.Path) -> list[pathlib.Path]:
    if not (folder / FIGURES_FOLDER).is_dir():
        return []
    from medmamba_jax.report.figures import files_of_figures

    return files_of_figures(folder / FIGURES_FOLDER)
