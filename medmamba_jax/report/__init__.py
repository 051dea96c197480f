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
    workdir: pathlib.Path,
    defaults: Mapping[str, Any],
    *,
    wanted: bool,
    evaluated: str = "",
    changed: bool = True,
) -> None:
    """Writes the report of a run whose results were just written, and prints the path of a page.

    A failure becomes a warning, because the results are complete. If there is no new page, the page
    of the earlier results is removed. Pages of results that did not change stay.

    Args:
        workdir: the run's folder.
        defaults: see `page.write_report`.
        wanted: the setting `results.report`.
        evaluated: the name of the evaluation elsewhere that was just made; "" means the run's own.
        changed: whether its results were written. Otherwise its page may stay.
    """
    folder = workdir / EVALUATIONS / evaluated if evaluated else workdir

    def write() -> pathlib.Path:
        from medmamba_jax.report.page import write_report  # it draws with matplotlib

        write_report(workdir, defaults)
        return folder / PAGE

    pages = [workdir / PAGE, *(workdir / EVALUATIONS).glob(f"*/{PAGE}")]
    others = [path for path in pages if path.parent != folder]
    _replace(write, workdir, folder if changed else None, others, wanted)


def summary_report_after(folder: pathlib.Path, *, wanted: bool) -> None:
    """Writes the page of a summary that was just written, likewise."""

    def write() -> pathlib.Path:
        from medmamba_jax.report.summary import write_summary_report

        return write_summary_report(folder)

    _replace(write, folder, folder, [], wanted)


def _replace(
    write: Callable[[], pathlib.Path],
    workdir: pathlib.Path,
    changed: pathlib.Path | None,
    others: list[pathlib.Path],
    wanted: bool,
) -> None:
    """Writes pages, or removes the page that is not true any more.

    Args:
        write: writes all pages of the run.
        workdir: the folder of the run.
        changed: the folder whose results were written; None if there is no such folder.
        others: pages of other results of the run, which also tell those of `changed`.
        wanted: whether to write.
    """
    if not is_first_host():
        return
    try:
        if wanted:
            say(str(write()))
            return
    except Exception as error:
        logging.warning(
            "the report could not be written (%s: %s); the results are complete, and"
            " `medmamba report %s` tries again",
            type(error).__name__,
            error,
            workdir,
        )
    try:
        if changed is not None and _remove_pages(changed):
            kept = "; the run's other pages stay, and still tell the earlier results"
            say(
                f"the report of the earlier results in {changed} is removed"
                f"{kept if any(page.is_file() for page in others) else ''};"
                f" `medmamba report {workdir}` writes a new one"
            )
    except Exception as error:
        logging.warning("the report of the earlier results could not be removed: %s", error)


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
