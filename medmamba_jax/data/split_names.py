"""The names of the splits of a data set, and other names for them."""

SPLITS = ("train", "val", "test")

_ALSO_CALLED = {"valid": "val", "validation": "val"}


def split_named(name: str) -> str | None:
    """Returns the entry of `SPLITS` that a name means, in any capitalisation; None if none."""
    name = name.casefold()
    name = _ALSO_CALLED.get(name, name)
    return name if name in SPLITS else None
