"""The names of the splits of a data set, other names for them, and the splits of public sets."""

from collections.abc import Iterable

from medmamba_jax.errors import UserError

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


def names_of_splits(names: Iterable[str], where: str, ending: str = "") -> dict[str, str]:
    """Returns split -> the one of these names that means it, in the order of `SPLITS`.

    Args:
        names: names of splits, and others, which it leaves out.
        where: what has the names, and `ending`, what follows each of them, in an error.

    Raises:
        UserError: two names mean the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_named(name)
        if split in found:
            raise UserError(
                f"{where} has both {found[split]}{ending} and {name}{ending}, which are {split}:"
                " keep one of them"
            )
        if split is not None:
            found[split] = name
    return {split: found[split] for split in SPLITS if split in found}
