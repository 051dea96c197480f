"""The training images on the device give the batches and the runs that the host's images give."""

import dataclasses
import itertools
import json
import weakref

import jax
import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax.data import Preprocessing, train_batches
from medmamba_jax.data.build import prepare
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.reading.order import sampler_for
from medmamba_jax.errors import UserError
from medmamba_jax.parallel import DataParallel
from medmamba_jax.training import device_set, loop, placing
from medmamba_jax.training.augmentation import DEVICE_POLICIES
from medmamba_jax.training.device_set import DeviceSet, rows_per_device
from medmamba_jax.training.reporting import read_metrics

COUNT = 37
PREPROCESSING = Preprocessing((16, 20), 3, "bilinear", (0.5,), (0.5,))


@pytest.fixture
def eight_devices(monkeypatch):
    """Gives the devices back that the other tests of this folder do without."""
    monkeypatch.undo()
    return jax.devices()


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (18 + i % 3, 25, 3), np.uint8) for i in range(COUNT)]
    weights = rng.uniform(0.1, 1, COUNT)
    return mm.LabelledImages(pixels, np.arange(COUNT) % 3, weights=weights)


@pytest.fixture
def in_the_step(monkeypatch):
    """Lets the device darken images by a random number, where the policy `light` is asked for."""

    def darker(key, images):
        return (images * jax.random.uniform(key, (), minval=0.2)).astype("uint8")

    monkeypatch.setitem(DEVICE_POLICIES, "light", darker)


def assert_same_batches(split, devices, sampler="shuffle"):
    options = {"batch_size": 24, "start_step": 2}
    order = sampler_for(sampler, split.task).order(split, 3)
    parallel = DataParallel(tuple(devices))
    with (
        train_batches(split, PREPROCESSING, "none", seed=3, sampler=sampler, **options) as host,
        DeviceSet(split, PREPROCESSING, parallel).batches(order, steps=2, **options) as device,
        jax.transfer_guard("disallow"),
    ):
        for expected, actual in itertools.islice(zip(host, device, strict=True), 5):
            assert expected.keys() == actual.keys()
            for name, x in expected.items():
                assert actual[name].sharding == parallel.batch
                found = jax.device_get(actual[name])
                assert found.dtype == x.dtype
                np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize(("devices", "sampler"), [(1, "shuffle"), (3, "balanced"), (8, "shuffle")])
def test_batches_are_those_of_the_host(split, eight_devices, devices, sampler):
    """37 images on 3 or 8 devices leave rows that are padded."""
    assert_same_batches(split, eight_devices[:devices], sampler)


def test_labels_that_are_not_known_stay_so(split, eight_devices):
    marks = np.random.default_rng(1).choice([0.0, 1.0, np.nan], (COUNT, 4))
    marked = mm.LabelledImages(split.images, marks)
    assert_same_batches(marked, eight_devices[:2])


def test_rows_are_padded_and_shared_evenly(split, eight_devices, monkeypatch):
    monkeypatch.setattr(device_set, "_PART", 2 * PREPROCESSING.image_bytes)
    parallel = DataParallel(tuple(eight_devices))
    arrays = DeviceSet(split, PREPROCESSING, parallel).arrays
    assert rows_per_device(COUNT, parallel) == 5
    for x in arrays.values():
        assert {shard.data.shape[0] for shard in x.addressable_shards} == {5}
        assert not np.asarray(x)[COUNT:].any()
    pixels = [PREPROCESSING.resize(image).reshape(-1) for image in split.images]
    np.testing.assert_array_equal(np.asarray(arrays["image"])[:COUNT], pixels)


def test_a_closed_iterator_lets_go_of_the_set(split):
    images = DeviceSet(split, PREPROCESSING, DataParallel.over_all_devices())
    pixels = weakref.ref(images.arrays["image"])
    batches = images.batches(lambda row: row % COUNT, batch_size=4, steps=3)
    next(batches)
    del images
    assert pixels() is not None
    batches.close()
    assert pixels() is None
    with pytest.raises(UserError, match="closed"):
        next(batches)


@pytest.mark.parametrize("augmentation", ["none", "light"])
def test_the_host_frees_what_it_kept(noise_png, tmp_path, augmentation):
    files = [noise_png(seed, (30, 28, 3)) for seed in range(40)]
    found = mm.LabelledImages(files, np.arange(40) % 2)
    config = DataConfig(image_size=32, cache="device", cache_dir=str(tmp_path))
    preprocessing = config.preprocessing(3)
    dataset = prepare(found, config, preprocessing, train_on_device=True).dataset
    store, train = dataset.splits["train"].images, dataset.splits["train"]
    assert set(store.in_memory) == set(range(40))
    kept = [weakref.ref(store.in_memory[place]) for place in train.places]
    expected = [store[place].reshape(-1) for place in train.places.tolist()]
    images = DeviceSet(train, preprocessing, DataParallel.over_all_devices())
    np.testing.assert_array_equal(np.asarray(images.arrays["image"]), expected)
    del expected
    assert set(store.in_memory) == set(range(40)) - set(train.places.tolist())
    assert not any(pixels() is not None for pixels in kept)
    assert train.read(0).shape == (32, 32, 3)  # made again


def changed(config, **settings):
    built = config()
    return dataclasses.replace(built, data=dataclasses.replace(built.data, **settings))
