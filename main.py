"""Trains or evaluates a MedMamba, as `medmamba train`; see `python main.py --help`."""

import sys

from medmamba_jax.cli.train import run

if __name__ == "__main__":
    sys.exit(run(sys.argv))
