"""Splits a public set into images for training, validation and testing."""

import dataclasses
from collections.abc import Callable

import numpy as np

from medmamba_jax.data.public.facts import PublicSet
from medmamba_jax.data.stratified import Strata
from medmamba_jax.errors import UserError

Rows = dict[str, np.ndarray]


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
) -> Rows:
    """Splits a public set.

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
    return PUBLIC_SPLITS[kind](public_set, ImageFacts(labels, patients, published, seed))


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """The facts about the images that a function in `PUBLIC_SPLITS` reads; see `split_rows`."""

    labels: np.ndarray
    patients: np.ndarray | None
    published: np.ndarray
    seed: int


def _paper(public_set: PublicSet, images: ImageFacts) -> Rows:
    """Splits a set in the sizes reported for MedMamba.

    The authors' lists of images are not public, so the images of each split differ from theirs. A
    copy of the set with another number of images is split in the same proportions.
    """
    if public_set.paper_is_official:
        return _official(public_set, images)
    return _in_proportion(public_set, images, groups=None)


def _by_patient(public_set: PublicSet, images: ImageFacts) -> Rows:
    """Splits a set in the proportions of the paper, with no patient in two splits."""
    return _in_proportion(public_set, images, groups=images.patients)


def _in_proportion(public_set: PublicSet, images: ImageFacts, groups: np.ndarray | None) -> Rows:
    return Strata(images.labels, images.seed, groups, public_set.class_names).by_fractions(
        val=public_set.split_sizes["val"] / public_set.num_images,
        test=public_set.split_sizes["test"] / public_set.num_images,
    )


def _official(public_set: PublicSet, images: ImageFacts) -> Rows:
    """Returns the publisher's own split.

    If it has no validation images, some are split off its training images, by patient. They are the
    same fraction of the training images as in the paper.
    """
    rows = {name: np.flatnonzero(images.published == name) for name in public_set.split_sizes}
    if not public_set.paper_is_official:
        sizes = public_set.split_sizes
        given = rows["train"]
        count = round(len(given) * sizes["val"] / (sizes["train"] + sizes["val"]))
        strata = Strata(images.labels, images.seed, images.patients, public_set.class_names)
        kept, val = strata.take(given).split_off(count, "val")
        rows |= {"train": given[kept], "val": given[val]}
    for name, indices in rows.items():
        if not len(indices):
            raise UserError(f"{public_set.name}: the published split has no {name} images")
    return rows


# A value of `data.public.splits` -> function (set, images) -> rows. `PublicSet.splits` names the
# values that a set supports.
PUBLIC_SPLITS: dict[str, Callable[[PublicSet, ImageFacts], Rows]] = {
    "paper": _paper,
    "official": _official,
    "patient": _by_patient,
}
