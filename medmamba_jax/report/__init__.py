"""The page, the figures and the model card that tell a run's results."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from medmamba_jax.parallel import is_first_host, say


def report_after(workdir: pathlib.Path, defaults: Mapping[str, Any], *, wanted: bool) -> None:
    """Writes the report of a run whose results were just written, and prints its path.

    A failure becomes a warning, because the results are complete.

    Args:
        workdir: the run's folder.
        defaults: see `page.write_report`.
        wanted: the setting `results.report`.
    """

    def write() -> pathlib.Path:
        from medmamba_jax.report.page import write_report  # it draws with matplotlib

        return write_report(workdir, defaults)

    _try(write, workdir, wanted)


def summary_report_after(folder: pathlib.Path, *, wanted: bool) -> None:
    """Writes the page of a summary that was just written, likewise."""

    def write() -> pathlib.Path:
        from medmamba_jax.report.summary import write_summary_report

        return write_summary_report(folder)

    _try(write, folder, wanted)


def _try(write: Callable[[], pathlib.Path], folder: pathlib.Path, wanted: bool) -> None:
    if not (wanted and is_first_host()):
        return
    try:
        say(str(write()))
    except Exception as error:
        logging.warning(
            "the report could not be written (%s: %s); the results are complete, and"
            " `medmamba report %s` tries again",
            type(error).__name__,
            error,
            folder,
        )
