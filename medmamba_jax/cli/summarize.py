"""`medmamba summarize RUN...`: seeds, folds, and models on the same images."""

import argparse
from typing import Any

from medmamba_jax.files import expanded, require_free, require_writable
from medmamba_jax.report import PAGE
from medmamba_jax.runs.summaries import summarize, summary_text

WRITTEN = ("summary.json", "summary.csv", PAGE)  # into the folder that `--output` names


def add_summarize(subcommands: Any) -> None:
    """Adds `summarize` to the subcommands of a parser."""
    parser = subcommands.add_parser(
        "summarize", help="pool seeds and folds, and compare models on the same images"
    )
    parser.add_argument(
        "run_folders",
        nargs="+",
        metavar="RUN",
        help="runs' folders, or the folder of a series, whose runs are all taken",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="write summary.json, summary.csv and report.html into this folder",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace these files if they exist"
    )
    parser.add_argument(
        "--evaluation",
        default="",
        metavar="NAME",
        help="compare RUN/evaluations/NAME of each run, which medmamba evaluate --data has written",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> str:
    """Summarises runs, writes the summary and returns it as text; see `summarize`.

    Raises:
        FileExistsError: the folder holds a summary or a report, and `--overwrite` is not given.
    """
    if options.output:
        folder = expanded(options.output)
        for name in WRITTEN:
            require_free(folder / name, overwrite=options.overwrite)
        require_writable(folder)
    summary = summarize(options.run_folders, options.output, evaluation=options.evaluation)
    text = summary_text(summary)
    if options.output:
        text += f"\n\n{expanded(options.output) / 'summary.json'}"
        from medmamba_jax.report.summary import write_summary_report  # it draws with matplotlib

        text += f"\n{write_summary_report(options.output)}"
    return text
