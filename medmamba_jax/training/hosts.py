"""Several hosts (JAX processes) in one run: all compute the same, the first reports.

Checkpoints are written by all together; caches and what the audit found, by each where its
`data.cache_dir` is, with the same content.
"""

import jax


def is_first() -> bool:
    """Whether this host writes the workdir's files other than checkpoints."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line at once, on the first host only."""
    if is_first():
        print(text, flush=True)
