"""Lists in messages."""

from collections.abc import Sequence

_LISTED = 5


def listed(items: Sequence[object], count: int | None = None, *, between: str = "; ") -> str:
    """Returns the first few items as text, and the number of the others.

    Args:
        items: all items, or the first of `count` items.
        count: the number of all items; None means `len(items)`.
        between: what separates the items.
    """
    more = (len(items) if count is None else count) - _LISTED
    text = between.join(map(str, items[:_LISTED]))
    return f"{text}{between}and {more} more" if more > 0 else text
