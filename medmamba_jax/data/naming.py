"""Naming images in messages and tables."""

from collections.abc import Sequence

from medmamba_jax.data.dataset import Split

_LISTED = 5


def listed(items: Sequence[object]) -> str:
    """Returns the first few of some items as text, and how many more there are."""
    more = len(items) - _LISTED
    return "; ".join(map(str, items[:_LISTED])) + (f"; and {more} more" if more > 0 else "")


def short_name(split: Split, row: int) -> str:
    """Names an image without the folder that all lie in, which may move."""
    return getattr(split, "name", split.describe)(row)
