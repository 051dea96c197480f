"""Splits a public set into images for training, validation and testing."""

import dataclasses

import numpy as np

from medmamba_jax.data.public.facts import PublicSet
from medmamba_jax.data.stratified import Strata
from medmamba_jax.errors import UserError


def require_splits(public_set: PublicSet, kind: str) -> None:
    """Raises UserError if the set does not support this kind of split."""
    if kind not in public_set.splits:
        raise UserError(
            f"{public_set.name} has no splits {kind!r}; set data.public.splits to one of"
            f" {public_set.splits}"
        )


def split_rows(
    public_set: PublicSet,
    kind: str,
    *,
    labels: np.ndarray,
    patients: np.ndarray | None,
    published: np.ndarray,
    seed: int,
) -> dict[str, np.ndarray]:
    """Splits a public set.

    The authors' lists of images are not public, so the images of the splits "paper" differ from
    theirs. A copy of the set with another number of images is split in the same proportions. If a
    publisher's own split has no validation images, some are split off its training images, by
    patient. They are the same fraction of the training images as in the paper.

    Args:
        public_set: the set.
        kind: a name in `PUBLIC_SPLITS` and in `public_set.splits`.
        labels: integers (n,).
        patients: strings (n,), or None if they are not known.
        published: the publisher's split of each image, strings (n,).
        seed: the same seed and images give the same splits.

    Returns:
        "train", "val", "test" -> ascending indices.

    Raises:
        UserError: the set does not support this kind of split, or has too few images for it.
    """
    require_splits(public_set, kind)
    sizes = public_set.split_sizes
    strata = Strata(labels, seed, patients, public_set.class_names)
    if kind != "official" and not public_set.paper_is_official:
        if kind != "patient":
            strata = dataclasses.replace(strata, groups=None)
        return strata.by_fractions(
            val=sizes["val"] / public_set.num_images, test=sizes["test"] / public_set.num_images
        )
    rows = {name: np.flatnonzero(published == name) for name in sizes}
    if not public_set.paper_is_official:
        given = rows["train"]
        count = round(len(given) * sizes["val"] / (sizes["train"] + sizes["val"]))
        kept, val = strata.take(given).split_off(count, "val")
        rows |= {"train": given[kept], "val": given[val]}
    for name, part in rows.items():
        if not len(part):
            raise UserError(f"{public_set.name}: the published split has no {name} images")
    return rows
