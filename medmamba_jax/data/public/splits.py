"""Which images of a public set are for training, validation and testing."""

import numpy as np

from medmamba_jax.data.public.facts import PublicSet
from medmamba_jax.data.splits.splitting import split_off, stratified_split


def require_splits(public_set: PublicSet, kind: str) -> None:
    """Raises ValueError, naming those that there are, if the set is not split in this way."""
    if kind not in public_set.splits:
        raise ValueError(
            f"{public_set.name} has no splits {kind!r}; set data.splits to one of"
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
    """Splits a set in the way that `kind` names; see `DataConfig.splits`.

    The authors' lists of images are not public: "paper" has their sizes, but not their images.
    What is not the whole published set is split in the same proportions. Where the publisher has
    no validation images, "official" splits some off the training images, by patient, and as large
    a part of them as in the paper.

    Args:
        public_set: the set.
        kind: one of `public_set.splits`.
        labels: integers (n,).
        patients: strings (n,), or None where they are not known.
        published: the publisher's split of each image, strings (n,).
        seed: the same seed and images give the same splits.

    Returns:
        "train", "val", "test" -> ascending indices.

    Raises:
        ValueError: if the set is not split in this way, or has too few images for it.
    """
    require_splits(public_set, kind)
    if kind == "official" or public_set.paper_is_official:
        return _official(public_set, labels, patients, published, seed)
    return stratified_split(
        labels,
        val_fraction=public_set.split_sizes["val"] / public_set.num_images,
        test_fraction=public_set.split_sizes["test"] / public_set.num_images,
        seed=seed,
        groups=patients if kind == "patient" else None,
        class_names=public_set.class_names,
    )


def _official(public_set, labels, patients, published, seed):
    rows = {name: np.flatnonzero(published == name) for name in public_set.split_sizes}
    if not public_set.paper_is_official:
        sizes = public_set.split_sizes
        given = rows["train"]
        count = round(len(given) * sizes["val"] / (sizes["train"] + sizes["val"]))
        kept, val = split_off(
            labels[given],
            count,
            seed=seed,
            name="val",
            groups=patients[given],
            class_names=public_set.class_names,
        )
        rows |= {"train": given[kept], "val": given[val]}
    for name, indices in rows.items():
        if not len(indices):
            raise ValueError(f"{public_set.name}: the published split has no {name} images")
    return rows
