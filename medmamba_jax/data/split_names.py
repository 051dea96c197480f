"""What the parts of a split data set are called, here and elsewhere."""

SPLITS = ("train", "val", "test")

_ALSO_CALLED = {"valid": "val", "validation": "val"}


def split_named(name: str) -> str | None:
    """Returns which of `SPLITS` a name stands for, however it is capitalised; None if none."""
    name = name.casefold()
    name = _ALSO_CALLED.get(name, name)
    return name if name in SPLITS else None
