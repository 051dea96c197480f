"""`python -m medmamba_jax`: the console command `medmamba`."""

import sys

from medmamba_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
