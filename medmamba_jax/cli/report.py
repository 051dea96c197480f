"""`medmamba report RUN`: writes a run's report again, without its images."""

import argparse
from typing import Any

from medmamba_jax.files import expanded
from medmamba_jax.report.page import write_report
from medmamba_jax.report.summary import SUMMARY, write_summary_report
from medmamba_jax.runs.description import FILE
from medmamba_jax.training.config import Config


def add_report(subcommands: Any) -> None:
    """Adds `report` to the subcommands of a parser."""
    parser = subcommands.add_parser(
        "report", help="write a run's report.html, figures and model card again"
    )
    parser.add_argument(
        "folder", metavar="RUN", help="a run's folder, or the folder of a summary or a series"
    )
    parser.set_defaults(run=report)


def report(options: argparse.Namespace) -> str:
    """Writes the page of a run, or of a summary, and returns its path."""
    folder = expanded(options.folder)
    if (folder / SUMMARY).is_file() and not (folder / FILE).is_file():
        return str(write_summary_report(folder))
    return str(write_report(folder, Config().to_dict()))
