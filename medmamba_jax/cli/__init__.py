"""The command line: `medmamba COMMAND ...`, which is also `python -m medmamba_jax COMMAND ...`.

A mistake of the caller ends in one line and exit code 2; a fault of the program keeps its
traceback. To add a subcommand, write a function `add_...` and add a row to `_SUBCOMMANDS`.
"""

import argparse
import errno
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import absl.logging
from absl import flags

from medmamba_jax.data.texts import for_terminal, one_line
from medmamba_jax.errors import DataUnavailableError, NonFiniteLossError, UserError

# Errors that the caller can correct.
MISTAKES = (UserError, DataUnavailableError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `medmamba`; returns the exit code.

    Args:
        arguments: the arguments after the program's name; by default those of this process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:
        from medmamba_jax.cli.train import run

        return run(["medmamba train", *arguments[1:]])
    flags.FLAGS(["medmamba"])  # absl complains about warnings before its flags are parsed
    log_warnings()
    options = _parser(arguments).parse_args(arguments)
    code = 0
    try:
        text = options.run(options)
        if isinstance(text, tuple):  # with an exit code
            text, code = text
    except MISTAKES as error:
        return fail(error)
    except NonFiniteLossError as error:
        return fail(error, code=1)
    if text:
        print(for_terminal(text))
    return code


_ACCESS = "and who may read and write it"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = dict.fromkeys(DISK_FULL, "and free some space")


class _TerminalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        # A name with line ends could pretend to be a line of its own.
        return for_terminal(text) if record.exc_info else one_line(text)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses unknown arguments here, so that the error names the subcommand's own help."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Prints one line and ends. If an argument is missing, the line shows all in order."""
        names = [str(action.metavar) for action in self._actions if not action.option_strings]
        names += [
            f"{a.option_strings[0]}={a.metavar or '|'.join(a.choices or ())}"
            for a in self._actions
            if a.required and a.option_strings
        ]
        if "are required" in message and len(names) > 1:
            message += f" (write {self.prog} {' '.join(names)})"
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


# Subcommand -> the module and the function that adds it to a parser, imported when it is needed.
_SUBCOMMANDS = {
    "evaluate": ("medmamba_jax.cli.evaluate", "add_evaluate"),
    "predict": ("medmamba_jax.cli.predict", "add_predict"),
    "summarize": ("medmamba_jax.cli.summarize", "add_summarize"),
    "report": ("medmamba_jax.cli.report", "add_report"),
    "explain": ("medmamba_jax.cli.explain", "add_explain"),
    "embed": ("medmamba_jax.cli.embed", "add_embed"),
    "demo": ("medmamba_jax.cli.demo", "add_demo"),
    "export": ("medmamba_jax.cli.export", "add_export"),
    "convert": ("medmamba_jax.cli.convert", "add_convert"),
    "inspect": ("medmamba_jax.cli.inspect", "add_inspect"),
    "list": ("medmamba_jax.cli.public_sets", "add_list"),
    "prepare": ("medmamba_jax.cli.public_sets", "add_prepare"),
}


def _parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Returns the parser of the subcommand that is asked for, or of all of them for the help."""
    parser = _Parser(prog="medmamba", description="Train MedMamba, and use what was trained.")
    subcommands: Any = parser.add_subparsers(metavar="COMMAND", required=True)
    if arguments and arguments[0] in _SUBCOMMANDS:
        chosen = [_SUBCOMMANDS[arguments[0]]]
    else:
        # Only for the list of commands: `main` hands its arguments to flags of another kind.
        subcommands.add_parser("train", help="train, with the flags of main.py", add_help=False)
        chosen = list(_SUBCOMMANDS.values())
    for module, function in chosen:
        getattr(importlib.import_module(module), function)(subcommands)
    return parser


def fail(error: object, code: int = 2) -> int:
    """Prints one line that names cause and remedy; returns the exit code."""
    if isinstance(error, OSError) and error.errno is not None:  # an error of another package
        remedy = _REMEDIES.get(error.errno, _ACCESS)
        named = "" if error.filename is None else f": {error.filename}"
        error = f"{error.strerror}{named}; check the path, {remedy}"
    line = " ".join(str(error).split())
    print(f"error: {for_terminal(line)}", file=sys.stderr)
    # Not imported here, because it imports JAX, for which the help would have to wait.
    if hosts := sys.modules.get("medmamba_jax.hosts"):
        hosts.tell_others(line, code)
    return code


def log_warnings() -> None:
    """Lets warnings appear as a line that begins with `warning:`."""
    absl.logging.use_absl_handler()
    absl.logging.set_verbosity(absl.logging.WARNING)
    absl.logging.get_absl_handler().setFormatter(_TerminalFormatter("warning: %(message)s"))
