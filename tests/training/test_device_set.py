"""The training images on the device give the batches and the runs that the host's images give."""

import dataclasses
import itertools
import json
import types
import weakref

import jax
import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax.data import Preprocessing, train_batches
from medmamba_jax.data.build import most_to_train, prepare
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.reading.order import sampler_for
from medmamba_jax.errors import UserError
from medmamba_jax.parallel import DataParallel
from medmamba_jax.training import device_set, loop, placing
from medmamba_jax.training.augmentation import DEVICE_POLICIES, Augmented
from medmamba_jax.training.device_set import DeviceSet, rows_per_device
from medmamba_jax.training.reporting import read_metrics
from medmamba_jax.training.stopping import Signals, Watch

COUNT = 37
PREPROCESSING = Preprocessing((16, 20), 3, "bilinear", (0.5,), (0.5,))


@pytest.fixture
def eight_devices(monkeypatch):
    """Gives the test all eight devices. The other tests of this folder have one."""
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
    """Makes the policy `strong` darken images by a random factor, which compiles faster."""

    def darker(key, images):
        factor = jax.random.uniform(key, (), minval=0.2)
        return Augmented((images * factor).astype("uint8"), None)

    monkeypatch.setitem(DEVICE_POLICIES, "strong", darker)


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


def test_the_host_frees_what_it_kept(split, tmp_path):
    config = DataConfig(image_size=16, cache="device", cache_dir=str(tmp_path))
    preprocessing = config.preprocessing(3)
    ready = prepare(split, config, preprocessing, train_on_device=True)
    train = ready.dataset.splits["train"]
    store = train.images
    assert set(store.in_memory) == set(range(COUNT))
    kept = [weakref.ref(store.in_memory[place]) for place in train.places.tolist()]
    expected = [store[place].flatten() for place in train.places.tolist()]
    images = DeviceSet(train, preprocessing, DataParallel.over_all_devices())
    np.testing.assert_array_equal(np.asarray(images.arrays["image"]), expected)
    assert set(store.in_memory) == set(range(COUNT)) - set(train.places.tolist())
    assert not any(pixels() is not None for pixels in kept)
    np.testing.assert_array_equal(train.read(0).reshape(-1), expected[0])  # made again


def changed(config, train=None, **settings):
    built = config(**(train or {}))
    return dataclasses.replace(built, data=dataclasses.replace(built.data, **settings))


def rows(workdir):
    """The log of a run, without times."""
    timed = {"images_per_second", "data_wait_share", "first_step_seconds", "peak_memory_bytes"}
    return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(workdir)]


def test_a_run_equals_one_from_memory(config, images, trained, tmp_path, capsys):
    mm.train(changed(config, cache="device"), tmp_path, images)
    printed = capsys.readouterr().out
    assert "cache       train 0.1 MiB on the device, others 0.1 MiB in memory" in printed
    assert "data wait" in printed and "augmented" not in printed
    assert len(rows(tmp_path)) == 2 and rows(tmp_path) == rows(trained[0])
    assert json.loads((tmp_path / "results" / "test.json").read_text()) == trained[1]["test"]
    assert json.loads((tmp_path / "run.json").read_text())["augmented_on"] == ""


@pytest.mark.slow
def test_the_device_augments_what_the_host_sends_as_well(
    config, images, trained, tmp_path, in_the_step, capsys
):
    """A run that stopped may go on with its images in another place."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    mm.train(changed(config, cache="device", augmentation="strong"), straight, images)
    for epochs, cache in ((1, "memory"), (2, "device")):
        options = {"cache": cache, "augmentation": "strong"}
        mm.train(changed(config, {"epochs": epochs}, **options), stopped, images)
    assert rows(straight) == rows(stopped)
    assert capsys.readouterr().out.count("augmented   strong, on the device") == 3
    assert json.loads((stopped / "run.json").read_text())["augmented_on"] == "device"
    assert rows(straight)[0]["train/loss"] != rows(trained[0])[0]["train/loss"]


def test_the_next_batch_is_sent_while_the_device_computes(config, images, tmp_path, monkeypatch):
    events = []
    put_batch, fetch = DataParallel.put_batch, loop.EpochOutputs.fetch
    monkeypatch.setattr(
        DataParallel, "put_batch", lambda *args: events.append("put") or put_batch(*args)
    )
    monkeypatch.setattr(
        loop.EpochOutputs, "fetch", lambda *args: events.append(args[1]) or fetch(*args)
    )
    with mm.start_run(config(), tmp_path, images) as run, loop.batches_of(run) as batches:
        loop.train_epoch(run, batches, Watch(Signals(), 0))
    # The loop sends the batch of the next step before it fetches the outputs of a step. The number
    # is that of the steps whose outputs have been fetched.
    assert events == ["put", 0, "put", 1, "put", 2, 3]


class TestPlaces:
    GIB = 2**30
    NEEDED = 40 * 32 * 32 * 3

    def place(self, monkeypatch, memory=0, before=None, **settings):
        monkeypatch.setattr(placing, "device_memory", lambda parallel: memory)
        found = mm.LabelledImages(np.zeros((40, 8, 8), np.uint8), np.arange(40) % 2)
        config = DataConfig(image_size=32, **settings)
        began = None if before is None else types.SimpleNamespace(augmented_on=before)
        parallel = DataParallel(tuple(jax.devices()) * 2)
        return placing.place_training(config, found, config.preprocessing(3), parallel, began)

    @pytest.mark.parametrize(
        ("cache", "memory", "policy", "before", "expected"),
        [
            ("auto", 0, "none", None, (False, "")),  # a CPU
            ("auto", 2 * NEEDED, "none", None, (True, "")),
            ("auto", 2 * NEEDED - 1, "none", None, (False, "")),
            ("memory", GIB, "none", None, (False, "")),
            ("device", 0, "none", None, (True, "")),
            ("auto", GIB, "light", None, (True, "device")),
            ("auto", 0, "light", None, (False, "host")),
            ("disk", GIB, "light", None, (False, "host")),
            ("auto", GIB, "mine", None, (False, "host")),  # the device does not have it
            ("memory", 0, "strong", None, (False, "device")),  # the host does not have it
            ("device", 0, "strong", None, (True, "device")),
            ("auto", GIB, "light", "host", (False, "host")),
            ("auto", 0, "light", "device", (False, "device")),
            ("memory", GIB, "light", "device", (False, "device")),
            ("device", GIB, "light", "device", (True, "device")),
            ("device", GIB, "none", "", (True, "")),
        ],
    )
    def test_the_place(self, monkeypatch, cache, memory, policy, before, expected):
        monkeypatch.setitem(POLICIES, "mine", POLICIES["light"])
        settings = {"cache": cache, "augmentation": policy}
        assert self.place(monkeypatch, memory, before, **settings) == expected

    def test_a_run_that_the_host_augments_is_refused(self, monkeypatch):
        with pytest.raises(UserError, match=r"augmented them on the host.*data\.cache to auto, or"):
            self.place(monkeypatch, 0, "host", cache="device", augmentation="light")

    def test_a_policy_that_the_device_lacks_is_refused(self, monkeypatch):
        monkeypatch.setitem(POLICIES, "mine", POLICIES["light"])
        for settings in ({"cache": "device"}, {"before": "device"}):
            with pytest.raises(UserError, match=r"'mine' is none of the policies of the device"):
                self.place(monkeypatch, augmentation="mine", **settings)

    def test_known_training_images_count_alone(self, monkeypatch):
        labels, splits = np.arange(40) % 2, np.array(["train"] * 30 + ["val"] * 10)
        known = mm.LabelledImages(np.zeros((40, 8, 8), np.uint8), labels, splits=splits)
        assert most_to_train(known, DataConfig()) == 30
        assert most_to_train(known, DataConfig(fold="1/5")) == 40
        assert most_to_train(mm.Dataset({"train": known, "val": known}), DataConfig()) == 40

    def test_more_than_the_device_has(self, config, images, tmp_path, monkeypatch):
        monkeypatch.setattr(device_set, "device_memory", lambda parallel: 20 * 32 * 32 * 3 - 1)
        with pytest.raises(UserError, match=r"take 0\.1 MiB on each device.*data\.cache to auto"):
            mm.start_run(changed(config, cache="device"), tmp_path / "run", images)
        assert not (tmp_path / "run").exists()

    def test_memory_is_what_jax_reports(self):
        def device(platform, stats):
            return types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)

        def parallel(*devices):
            own = types.SimpleNamespace(devices=devices)
            return types.SimpleNamespace(devices=devices, of_this_host=own)

        gpus = [device("gpu", {"bytes_limit": size}) for size in (30, 20)]
        assert device_set.device_memory(parallel(*gpus)) == 20
        assert device_set.device_memory(parallel(device("gpu", None))) == 0
        assert device_set.device_memory(parallel(device("cpu", {"bytes_limit": 20}))) == 0
