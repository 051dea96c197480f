"""Naming images in messages and tables."""

from collections.abc import Sequence

from medmamba_jax.data.dataset import Split

_LISTED = 5


def listed(items: Sequence[object]) -> str:
    """Returns the first few of some items as text, and dots if there are more."""
    return "; ".join(map(str, items[:_LISTED])) + ("; ..." if len(items) > _LISTED else "")


def short_name(split: Split, row: int) -> str:
    """Names an image without the folder that all lie in, which may move."""
    return getattr(split, "name", split.describe)(row)
