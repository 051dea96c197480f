"""Splitting labelled images by a seed, each class in proportion."""

import numpy as np
from sklearn.model_selection import train_test_split


def split_off(
    labels: np.ndarray, count: int, *, seed: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Splits `count` images off, stratified by class.

    Args:
        labels: integers (n,).
        count: images to split off.
        seed: the same seed and labels give the same split.
        name: what the part split off is called in an error.

    Returns:
        Two ascending index arrays: what is kept (n - count,), and what is split off (count,).

    Raises:
        ValueError: if some class is too small to be in both parts.
    """
    class_sizes = np.unique(labels, return_counts=True)[1]
    if class_sizes.min() < 2 or not len(class_sizes) <= count <= len(labels) - len(class_sizes):
        raise ValueError(
            f"cannot split {count} images off {len(labels)} for {name}: every class (sizes"
            f" {class_sizes.tolist()}) needs an image in both parts; add images or change the"
            " fraction"
        )
    kept, split = train_test_split(
        np.arange(len(labels)), test_size=count, stratify=labels, random_state=seed
    )
    return np.sort(kept), np.sort(split)


def stratified_split(
    labels: np.ndarray, *, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, np.ndarray]:
    """Splits images into train, val and test, stratified by class.

    The sizes are the fractions of n, rounded to whole images.

    Args:
        labels: integers (n,).
        val_fraction: part of all images for validation.
        test_fraction: part of all images for testing.
        seed: the same seed and labels give the same splits.

    Returns:
        "train", "val", "test" -> ascending indices.

    Raises:
        ValueError: if some class is too small to be in every split.
    """
    labels = np.asarray(labels)
    rest, test = split_off(labels, round(test_fraction * len(labels)), seed=seed, name="test")
    train, val = split_off(labels[rest], round(val_fraction * len(labels)), seed=seed, name="val")
    return {"train": rest[train], "val": rest[val], "test": test}
