"""Runs the command `medmamba train`, which trains a MedMamba; see `python main.py --help`."""

import sys

from medmamba_jax.cli.train import run

if __name__ == "__main__":
    sys.exit(run(sys.argv))
