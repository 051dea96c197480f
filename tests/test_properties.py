"""Properties that must hold for any input, which Hypothesis looks for counterexamples of."""

import dataclasses
import json
from unittest import mock

import numpy as np
import pytest
from absl import flags
from hypothesis import assume, example, given, settings
from hypothesis import strategies as some
from ml_collections import config_flags
from scan_oracle import scan_oracle
from selective_scan_base import make_inputs

import medmamba_jax as mm
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.reading.order import SAMPLERS
from medmamba_jax.data.stratified import Strata
from medmamba_jax.errors import UserError
from medmamba_jax.ops.scan.shapes import ScanShape

# The same examples each time, so that a fault shows in the change that makes it.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.load_profile("same")

sizes = some.integers(1, 9)
seeds = some.integers(0, 2**32 - 1)


@pytest.mark.nightly  # each shape is compiled
@settings(max_examples=8)
@given(
    some.builds(ScanShape, b=some.integers(1, 3), l=some.integers(1, 40), k=sizes, d=sizes, n=sizes)
)
@example(ScanShape(b=1, l=1, k=1, d=1, n=1))
def test_the_scan_of_any_shape_is_the_recurrence(shape):
    inputs = make_inputs(shape, seed=shape.l)
    actual = np.asarray(mm.selective_scan(**inputs, delta_softplus=True), np.float64)
    arrays = [np.asarray(x, np.float64) for x in inputs.values()]
    expected, _ = scan_oracle(*arrays, True, np.zeros(actual.shape))
    bound = 1e-6 * (1 + shape.l**0.5) * abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


@some.composite
def grouped_labels(draw):
    """Labels of 2 to 4 classes and the patients of the images, each with up to 4 images."""
    classes = draw(some.integers(2, 4))
    of_patients = draw(some.lists(some.integers(1, 4), min_size=8 * classes, max_size=40))
    groups = np.repeat(np.arange(len(of_patients)), of_patients)
    labels = groups % classes if draw(some.booleans()) else np.arange(len(groups)) % classes
    order = np.random.default_rng(draw(seeds)).permutation(len(groups))
    return labels[order], np.char.add("p", groups[order].astype(str))


@settings(max_examples=20)
@given(grouped_labels(), seeds, some.booleans())
def test_a_split_is_a_partition_in_which_no_patient_crosses(drawn, seed, with_groups):
    labels, groups = drawn
    groups = groups if with_groups else None

    def split():
        return Strata(labels, seed=seed, groups=groups).by_fractions(val=0.2, test=0.3)

    try:
        rows = split()
    except UserError:
        assume(False)  # The splitter refuses classes with too few patients.
    assert np.array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(len(labels)))
    again = split()
    assert all(np.array_equal(rows[name], again[name]) for name in rows)
    for name, fraction in (("val", 0.2), ("test", 0.3)):
        if groups is None:
            assert len(rows[name]) == round(fraction * len(labels))
            for label in np.unique(labels):  # each class is rounded, and the rest is dealt out
                count = (labels == label).sum()
                expected = len(rows[name]) * count / len(labels)
                assert abs((labels[rows[name]] == label).sum() - expected) < 2
        else:
            others = np.setdiff1d(np.arange(len(labels)), rows[name])
            assert not set(groups[rows[name]]) & set(groups[others])


@settings(max_examples=25)
@given(some.integers(1, 50), some.integers(1, 4), some.integers(1, 4), seeds, some.integers(0, 9))
def test_each_image_comes_once_in_a_permutation_for_any_number_of_hosts(
    count, hosts, share, seed, epoch
):
    images = LabelledImages(np.zeros((count, 2, 2), np.uint8), np.arange(count) % 2, ("a", "b"))
    order = SAMPLERS["shuffle"].order(images, seed)
    batch = hosts * share
    steps = range(epoch * count // batch, -(-(epoch + 1) * count // batch))
    # What each host reads: its part of each batch, as `train_batches` counts rows.
    by_hosts = {
        step * batch + host * share + place: order(step * batch + host * share + place)
        for step in steps
        for host in range(hosts)
        for place in range(share)
    }
    drawn = [by_hosts[row] for row in range(epoch * count, (epoch + 1) * count)]
    assert sorted(drawn) == list(range(count))
    again = SAMPLERS["shuffle"].order(images, seed)
    assert [again(row) for row in reversed(range(epoch * count, (epoch + 1) * count))] == drawn[
        ::-1
    ]


@settings(max_examples=25)
@given(
    some.integers(2, 30),
    some.integers(2, 30),
    seeds,
    some.integers(1, 200),
)
def test_the_balanced_order_draws_classes_equally_often(few, many, seed, rows):
    labels = np.repeat([0, 1], [few, many])
    images = LabelledImages(np.zeros((few + many, 2, 2), np.uint8), labels, ("a", "b"))
    order = SAMPLERS["balanced"].order(images, seed)
    drawn = labels[[order(row) for row in range(rows)]]
    assert abs((drawn == 0).sum() - (drawn == 1).sum()) <= 1


texts = some.text(some.characters(exclude_categories=("Cs",)), max_size=20)
fractions = some.floats(0.01, 0.4)
changes = some.fixed_dictionaries(
    {},
    optional={
        "data.path": texts,
        "data.image_size": some.integers(32, 512),
        "data.augmentation": some.sampled_from(sorted(POLICIES)),
        "data.val_fraction": fractions,
        "data.test_fraction": fractions,
        "data.split_seed": seeds,
        "data.max_pixels": some.integers(1, 10**12),
        "data.frame": some.integers(-1, 100),
        "data.audit": some.booleans(),
        "data.csv.label_column": some.sampled_from(["label", "a,b", "größe"]),
        "data.folder.group_pattern": some.sampled_from(["", "(p[0-9]+)", r"(\w+)_"]),
        "train.lr": some.floats(1e-8, 1.0),
        "train.epochs": some.integers(1, 10**6),
        "train.batch_size": some.integers(1, 4096),
        "train.seed": some.integers(0, 2**31 - 1),
    },
)


def configured(values):
    config = mm.default_config()
    config.update_from_flattened_dict(values)
    return mm.Config.of(config)


@settings(max_examples=20)
@given(changes)
def test_a_configuration_survives_dictionaries_and_json(values):
    config = configured(values)
    assert mm.Config.from_dict(config.to_dict()) == config
    assert mm.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for name, value in values.items():
        found = config.to_dict()
        for key in name.split("."):
            found = found[key]
        assert found == value


@settings(max_examples=5)  # each defines all flags
@given(changes)
def test_a_configuration_survives_flags(values):
    holder = flags.FlagValues()
    arguments = ["main.py", *(f"--config.{name}={value}" for name, value in values.items())]
    with mock.patch("sys.argv", arguments):  # where ml_collections looks for settings
        config_flags.DEFINE_config_dict("config", mm.default_config(), flag_values=holder)
        holder(arguments)
    assert mm.Config.of(holder.config) == configured(values)


@given(some.sampled_from(["data", "train", "model", "results"]), texts)
@settings(max_examples=20)
def test_an_unknown_key_is_always_refused(section, key):
    values = mm.Config.of(mm.default_config()).to_dict()
    assume(key not in values[section])
    values[section][key] = 1
    try:
        mm.Config.from_dict(values)
    except UserError as error:
        assert repr(key) in str(error)
    else:
        raise AssertionError("it was taken")


def test_the_properties_see_a_split_that_crosses():
    """A splitter that ignores patients fails the property, so the property can fail."""
    groups = np.repeat([f"p{i}" for i in range(20)], 3)
    labels = np.arange(60) % 2
    rows = dataclasses.replace(Strata(labels, groups=groups), groups=None).by_fractions(
        val=0.2, test=0.3
    )
    assert set(groups[rows["val"]]) & set(groups[rows["train"]])
