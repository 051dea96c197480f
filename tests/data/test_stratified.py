import itertools

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from medmamba_jax.data.proportions import deal_groups
from medmamba_jax.data.stratified import Strata

FRACTIONS = np.array([0.6, 0.1, 0.3])


def stratified_split(labels, *, val_fraction, test_fraction, **known):
    return Strata(labels, **known).by_fractions(val=val_fraction, test=test_fraction)


def fold_split(labels, *, fold, folds, val_fraction, **known):
    return Strata(labels, **known).by_fold(fold, folds, val=val_fraction)


def split_off(labels, count, *, name, **known):
    return Strata(labels, **known).split_off(count, name)


def patients(seed, count=300, images=1000, classes=4):
    """Labels and patients, of whom some have many images, and some images of several classes."""
    rng = np.random.default_rng(seed)
    patient = (count * rng.random(images) ** 2).astype(int)
    labels = np.where(rng.random(images) < 0.2, rng.integers(0, classes, images), patient % classes)
    return labels, np.char.add("p", patient.astype(str))


def assert_a_partition(rows, count):
    assert list(rows) == ["train", "val", "test"]
    assert sorted(np.concatenate(list(rows.values()))) == list(range(count))
    assert all((np.diff(part) > 0).all() for part in rows.values())


def assert_no_group_twice(rows, groups):
    for one, other in itertools.combinations(rows.values(), 2):
        assert not set(groups[one]) & set(groups[other])


def share_of_classes(rows, labels):
    return np.array(
        [np.bincount(labels[part], minlength=labels.max() + 1) for part in rows.values()]
    ) / np.bincount(labels)


def test_images_are_split_to_the_image_and_in_proportion():
    labels = np.repeat([0, 1, 2], [200, 100, 30])
    rows = stratified_split(labels, val_fraction=0.1, test_fraction=0.3, seed=0)
    assert_a_partition(rows, 330)
    assert [np.bincount(labels[part]).tolist() for part in rows.values()] == [
        [120, 60, 18],
        [20, 10, 3],
        [60, 30, 9],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_patients_stay_together_and_classes_in_proportion(seed):
    labels, groups = patients(seed)
    rows = stratified_split(labels, val_fraction=0.1, test_fraction=0.3, seed=seed, groups=groups)
    assert_a_partition(rows, 1000)
    assert_no_group_twice(rows, groups)
    sizes = np.array([len(part) for part in rows.values()])
    assert abs(sizes - 1000 * FRACTIONS).max() <= 5
    assert abs(share_of_classes(rows, labels) - FRACTIONS[:, None]).max() < 0.02


def test_a_seed_decides():
    labels, groups = patients(0)

    def split(seed):
        fractions = {"val_fraction": 0.1, "test_fraction": 0.3}
        rows = stratified_split(labels, **fractions, seed=seed, groups=groups)
        return {name: part.tolist() for name, part in rows.items()}

    assert split(3) == split(3) != split(4)


def test_a_group_that_is_half_of_all_goes_where_it_fits():
    groups = np.array(["big"] * 50 + [f"small{i}" for i in range(50)])
    labels = np.arange(100) % 2
    rows = stratified_split(labels, val_fraction=0.1, test_fraction=0.3, seed=0, groups=groups)
    assert [len(part) for part in rows.values()] == [60, 10, 30]
    assert "big" in groups[rows["train"]]


def test_ids_that_begin_alike_are_not_one_patient():
    groups = np.array([f"p{i}" for i in range(40)])
    rows = stratified_split(
        np.arange(40) % 2, val_fraction=0.1, test_fraction=0.3, seed=0, groups=groups
    )
    assert [len(part) for part in rows.values()] == [24, 4, 12]


def all_ways(counts):
    """The fewest (part, class) that any way of dealing leaves empty, and the least deviation."""
    shares = np.column_stack(
        [counts / counts.sum(0) / np.sqrt(counts.shape[1]), counts.sum(1) / counts.sum()]
    )

    def judge(parts):
        have = np.array([shares[parts == part].sum(0) for part in range(3)])
        deviation = ((have - FRACTIONS[:, None] * shares.sum(0)) ** 2).sum()
        return int((have == 0).sum()), float(deviation)

    best = min(judge(np.array(ways)) for ways in itertools.product(range(3), repeat=len(counts)))
    return judge, best


def test_few_groups_are_dealt_nearly_as_well_as_any_way_can():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(12):
        counts = rng.integers(0, 9, (6, 2)) + np.eye(6, 2, dtype=int)
        judge, (fewest_empty, least) = all_ways(counts)
        parts = deal_groups(counts, counts.sum(1), FRACTIONS, np.random.default_rng(1))
        empty, deviation = judge(parts)
        assert empty == fewest_empty
        ratios.append(deviation / least)
    assert np.median(ratios) < 1.1


@pytest.mark.parametrize("seed", range(3))
def test_equal_parts_are_no_worse_than_those_of_scikit_learn(seed):
    labels, groups = patients(seed)
    group_of = np.unique(groups, return_inverse=True)[1]
    counts = np.zeros((group_of.max() + 1, 4), int)
    np.add.at(counts, (group_of, labels), 1)
    fifth = np.full(5, 0.2)
    ours = deal_groups(counts, counts.sum(1), fifth, np.random.default_rng(seed))[group_of]
    theirs = np.empty(1000, int)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for part, (_, test) in enumerate(splitter.split(labels, labels, groups)):
        theirs[test] = part

    def worst(parts):
        rows = {part: np.flatnonzero(parts == part) for part in range(5)}
        return abs(share_of_classes(rows, labels) - 0.2).max()

    assert worst(ours) <= worst(theirs)


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_no_worse_than_folds_of_scikit_learn_put_together(seed):
    """What one would do with scikit-learn, which knows folds of one size only."""
    labels, groups = patients(seed, count=40, images=200)
    ours = stratified_split(labels, val_fraction=0.1, test_fraction=0.3, seed=seed, groups=groups)
    splitter = StratifiedGroupKFold(10, shuffle=True, random_state=seed)
    folds = [test for _, test in splitter.split(labels, labels, groups)]
    cut = {"train": folds[:6], "val": folds[6:7], "test": folds[7:]}
    theirs = {name: np.concatenate(parts) for name, parts in cut.items()}

    def worst(rows):
        return abs(share_of_classes(rows, labels) - FRACTIONS[:, None]).max()

    assert worst(ours) <= worst(theirs)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("multilabel", [False, True])
def test_each_image_is_tested_in_one_fold(grouped, multilabel):
    labels, groups = patients(0)
    if multilabel:
        labels = (labels[:, None] == np.arange(4)).astype(np.float32)
        labels[::7, 0] = np.nan
    rounds = [
        fold_split(
            labels,
            fold=fold,
            folds=5,
            val_fraction=0.1,
            seed=0,
            groups=groups if grouped else None,
        )
        for fold in range(5)
    ]
    for rows in rounds:
        assert_a_partition(rows, 1000)
        if grouped:
            assert_no_group_twice(rows, groups)
        sizes = [len(part) for part in rows.values()]
        assert abs(np.array(sizes) - [700, 100, 200]).max() <= 10
        shown = labels == 1 if multilabel else labels[:, None] == np.arange(4)
        shares = np.array([shown[part].sum(0) for part in rows.values()]) / shown.sum(0)
        assert abs(shares - np.array([[0.7], [0.1], [0.2]])).max() < 0.04
    tested = np.concatenate([rows["test"] for rows in rounds])
    assert sorted(tested) == list(range(1000))


def test_classes_of_a_multi_label_set_are_in_proportion_each():
    rng = np.random.default_rng(0)
    labels = (rng.random((2000, 6)) < [0.01, 0.02, 0.05, 0.1, 0.3, 0.6]).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    rows = stratified_split(labels, val_fraction=0.1, test_fraction=0.3, seed=0)
    assert_a_partition(rows, 2000)
    assert [len(part) for part in rows.values()] == [1200, 200, 600]
    for part, fraction in zip(rows.values(), FRACTIONS, strict=True):
        wanted = fraction * (labels == 1).sum(0)
        assert abs((labels[part] == 1).sum(0) - wanted).max() < 2


def test_split_off_keeps_groups_whole():
    labels, groups = patients(1)
    kept, split = split_off(labels, 150, seed=0, name="val", groups=groups)
    assert sorted([*kept, *split]) == list(range(1000)) and abs(len(split) - 150) <= 5
    assert not set(groups[kept]) & set(groups[split])


def test_what_the_test_split_leaves_is_told():
    labels = np.arange(12) % 2  # of 12 images, test takes 4, and val should have 1 of 2 classes
    text = r"split 1 image off 8 for val \(the 8 that the test {} leaves of 12\): .*\[4, 4\].*"
    with pytest.raises(ValueError, match=text.format("split") + r"change data\.val_fraction"):
        stratified_split(labels, val_fraction=0.1, test_fraction=1 / 3, seed=0)
    with pytest.raises(ValueError, match=text.format("fold") + r"change data\.val_fraction"):
        fold_split(labels, fold=0, folds=3, val_fraction=0.1, seed=0)


def test_a_class_that_does_not_go_round_is_named():
    labels = np.repeat([0, 1], [60, 40])
    groups = np.array([f"a{i}" for i in range(60)] + [f"b{i % 2}" for i in range(40)])
    fractions = {"val_fraction": 0.1, "test_fraction": 0.3}
    names = ("normal", "rare")
    with pytest.raises(
        ValueError, match=r"'rare' has 2 patients \(groups\), .* none for (val|test)"
    ):
        stratified_split(labels, **fractions, seed=0, groups=groups, class_names=names)
    with pytest.raises(ValueError, match=r"'rare' has 2 patients .* too few for 3 folds: ask"):
        fold_split(
            labels, fold=0, folds=3, val_fraction=0.1, seed=0, groups=groups, class_names=names
        )
    few = np.repeat([0, 1], [96, 4])  # scikit-learn leaves such a class out of val without a word
    with pytest.raises(ValueError, match="class 1 has 4 images, which leaves none for val"):
        stratified_split(few, **fractions, seed=0)
    with pytest.raises(ValueError, match="class 1 has 4 images, too few for 5 folds"):
        fold_split(few, fold=0, folds=5, val_fraction=0.1, seed=0)
