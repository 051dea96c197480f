import numpy as np
import pytest

from medmamba_jax.data import DataConfig, LabelledImages, build_dataset
from medmamba_jax.data.splits.as_configured import split_as_configured
from medmamba_jax.data.splits.selection import selected_rows

LABELS = np.random.default_rng(0).choice(4, 400, p=[0.6, 0.3, 0.08, 0.02])
NAMES = [f"{i}.png" for i in range(400)]


def select(labels=LABELS, splits=None, **settings):
    names = NAMES[: len(labels)]
    return selected_rows(names, labels, DataConfig(path="x", **settings), splits)


@pytest.mark.parametrize("number", [4, 5, 37, 100, 399, 400, 1000])
def test_a_subset_has_its_size_and_every_class_in_proportion(number):
    rows = select(subset=str(number))
    assert len(rows) == min(number, 400) and (np.diff(rows) > 0).all()
    wanted = np.bincount(LABELS) * len(rows) / 400
    counts = np.bincount(LABELS[rows], minlength=4)
    assert counts.min() >= 1
    if wanted.min() >= 1:
        assert abs(counts - wanted).max() < 1


def test_a_number_for_each_class():
    rows = select(subset="20/class")
    assert np.bincount(LABELS[rows]).tolist() == np.minimum(20, np.bincount(LABELS)).tolist()


def test_a_seed_decides_and_a_larger_subset_holds_the_smaller_one():
    small, large = select(subset="10/class"), select(subset="20/class")
    assert set(small) <= set(large)
    assert (small == select(subset="10/class")).all()
    assert set(small) != set(select(subset="10/class", split_seed=1))


def test_splits_are_in_proportion():
    splits = np.where(np.arange(400) < 280, "train", "test")
    rows = select(subset="100", splits=splits)
    assert abs((splits[rows] == "train").sum() - 70) <= 6


def test_each_class_of_a_multi_label_set_is_drawn():
    labels = (np.random.default_rng(1).random((400, 3)) < [0.5, 0.2, 0.05]).astype(np.float32)
    labels[::9, 0] = np.nan
    rows = select(labels, subset="12/class")
    shown = np.column_stack([labels == 1, ~(labels == 1).any(1)])
    assert (shown[rows].sum(0) >= np.minimum(12, shown.sum(0))).all()


def test_too_small_a_subset_is_refused():
    with pytest.raises(ValueError, match=r"data\.subset=3 is less than the 4 classes"):
        select(subset="3")


@pytest.mark.parametrize(
    ("subset", "told"),
    [
        ("401", "data.subset=401 asks for more images than there are (400)"),
        ("400", ""),
        ("5/class", ""),
        ("60/class", "data.subset=60/class asks for more images than there are in 2 of 4 classes"),
    ],
)
def test_more_images_than_there_are_is_told(subset, told, caplog):
    counts = np.bincount(LABELS)
    assert counts.min() >= 5 and (counts < 60).sum() == 2
    select(subset=subset)
    assert bool(caplog.text) == bool(told) and told in caplog.text
    assert ("/class asks" not in caplog.text) or f"smallest has {counts.min()})" in caplog.text


def test_listed_images_are_left_out(tmp_path, caplog):
    path = tmp_path / "out.txt"
    path.write_text("\ufeff7.png\r\n\r\n 9.png \r\nnowhere.png\r\n", encoding="utf-8")
    rows = select(exclude=str(path))
    assert set(range(400)) - set(rows) == {7, 9}
    assert "names 1 images that are not there: nowhere.png" in caplog.text
    path.write_text("\n".join(NAMES))
    with pytest.raises(ValueError, match="excludes all 400 images"):
        select(exclude=str(path))
    with pytest.raises(FileNotFoundError, match=r"set data\.exclude"):
        select(exclude=str(tmp_path / "nothing"))


@pytest.mark.parametrize(("left_out", "lacking"), [("train", "train"), ("test", "val or test")])
def test_a_split_that_is_left_out_altogether_is_named(left_out, lacking, tmp_path):
    images = LabelledImages(
        list(np.zeros((8, 4, 4), np.uint8)),
        [0, 1] * 4,
        names=tuple(NAMES[:8]),
        splits=np.repeat(["train", "test"], 4),
    )
    left = NAMES[:4] if left_out == "train" else NAMES[4:8]
    (tmp_path / "out.txt").write_text("\n".join(left))
    config = DataConfig(exclude=str(tmp_path / "out.txt"))
    with pytest.raises(ValueError, match=f"no image is left for {lacking}: leave fewer"):
        build_dataset(config, images)
    kept = images.take(np.flatnonzero(images.splits != left_out))  # as damage leaves them
    with pytest.raises(ValueError, match=f"no image is left for {lacking}: leave fewer"):
        split_as_configured(kept, DataConfig())
