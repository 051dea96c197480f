"""The names of the splits of a data set, other names for them, and the splits of public sets."""

SPLITS = ("train", "val", "test")

# A value of `data.public.splits` -> what it means. `PublicSet.splits` says which a set supports.
PUBLIC_SPLITS = {
    "paper": "the sizes reported for MedMamba, by `data.split_seed`",
    "official": "the publisher's own split",
    "patient": "the proportions of the paper, with no patient in two splits, by `data.split_seed`",
}

_ALSO_CALLED = {"valid": "val", "validation": "val"}


def split_named(name: str) -> str | None:
    """Returns the entry of `SPLITS` that a name means, in any capitalisation; None if none."""
    name = name.casefold()
    name = _ALSO_CALLED.get(name, name)
    return name if name in SPLITS else None
