"""Runs the command `medmamba train`, which trains a MedMamba; see `python main.py --help`."""

import sys

from medmamba_jax.interrupts import run_program

if __name__ == "__main__":
    sys.exit(run_program("medmamba_jax.cli.train", "run", sys.argv))
