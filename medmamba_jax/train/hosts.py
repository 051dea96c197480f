"""Several hosts (JAX processes) in one run: all compute the same, the first writes and speaks."""

import jax


def is_first() -> bool:
    """Whether this host writes the run's files; checkpoints are written by all together."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line at once, on the first host only."""
    if is_first():
        print(text, flush=True)
