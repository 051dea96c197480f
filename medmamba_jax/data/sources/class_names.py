"""The order of class names, and the check for names that may mean the same class."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from medmamba_jax.errors import UserError


def in_natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns distinct names, sorted as text, but runs of digits by value: 9 comes before 10."""
    return tuple(sorted(set(names), key=_natural))


def numbered(labels: Sequence[str], where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of the classes, and the number of the class of each image.

    Args:
        labels: the name of the class of each image (n,).
        where: the name of the place in an error.

    Returns:
        Distinct names in natural order, and indices into them, int32 (n,).

    Raises:
        UserError: two names differ only by case.
    """
    names = in_natural_order(labels)
    spellings: dict[str, str] = {}
    for name in sorted(names):
        other = spellings.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"{where} has the classes {other!r} and {name!r}, which differ only by case: give"
                " both one name"
            )
    index = {name: i for i, name in enumerate(names)}
    return names, np.array([index[label] for label in labels], np.int32)


def _natural(name: str) -> tuple[list[str | int], str]:
    pieces = re.split(r"([0-9]+)", name)
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name
