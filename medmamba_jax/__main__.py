"""`python -m medmamba_jax`: the console command `medmamba`."""

import sys

from medmamba_jax.interrupts import run_program


def main() -> int:
    """Runs `medmamba`; returns the exit code."""
    return run_program("medmamba_jax.cli", "main")


if __name__ == "__main__":
    sys.exit(main())
