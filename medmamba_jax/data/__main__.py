"""`python -m medmamba_jax.data`: the public sets, preparing them, and looking at any images.

A mistake is answered with one line and exit code 2.
"""

import argparse
import sys
from logging import basicConfig

from absl import logging

from medmamba_jax.data.inspection.inspect import add_inspect
from medmamba_jax.data.public.commands import add_list, add_prepare
from medmamba_jax.errors import DataUnavailableError

# A new subcommand is a function here. It sets `run`, which takes what was parsed and returns what
# is to be printed.
_SUBCOMMANDS = (add_list, add_prepare, add_inspect)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 after an error."""
    parser = _Parser(prog="python -m medmamba_jax.data", description="Images to train with.")
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in _SUBCOMMANDS:
        add(subcommands)
    options = parser.parse_args(arguments)
    try:
        print(options.run(options))
    except (DataUnavailableError, OSError, ValueError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    basicConfig(format="warning: %(message)s")
    logging.set_verbosity(logging.WARNING)
    sys.exit(main())
