import dataclasses
import functools
import itertools
import os
import threading

import numpy as np
import pytest

from medmamba_jax.data import (
    DataConfig,
    Dataset,
    LabelledImages,
    Preprocessing,
    build_dataset,
    eval_batches,
    train_batches,
)
from medmamba_jax.data.reading import caching
from medmamba_jax.data.reading.cache_places import CACHES, Need
from medmamba_jax.data.reading.caching import (
    DecodedImages,
    InMemory,
    OnDisk,
    available_memory,
    cached,
    open_caches,
)

COUNT = 20
PREPROCESSING = Preprocessing((32, 40), 3, "bilinear", (0.5,), (0.5,))


class Counting:
    """Counts how often an image is asked for."""

    def __init__(self, images):
        self.images = images
        self.reads = np.zeros(len(images), int)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        self.reads[place] += 1
        return self.images[place]


def split(noise_png, seeds=range(COUNT)):
    images = [noise_png(seed, (30 + seed % 5, 28, 3)) for seed in seeds]
    return LabelledImages(Counting(images), np.arange(len(images)) % 2)


def cached_split(split, kept):
    return dataclasses.replace(split, images=kept, places=np.arange(len(split)))


@pytest.fixture
def original(noise_png):
    return split(noise_png)


def on_disk(source, folder, preprocessing=PREPROCESSING, *, resized=True):
    return OnDisk(DecodedImages(source, preprocessing, resized=resized), folder)


def in_memory(source, folder, preprocessing=PREPROCESSING, *, resized=True):
    return InMemory(DecodedImages(source, preprocessing, resized=resized))


STORES = {"memory": in_memory, "disk": on_disk}
each_store = pytest.mark.parametrize("store", STORES.values(), ids=STORES)


@each_store
class TestBoth:
    @pytest.mark.parametrize("policy", ["none", "official", "light"])
    def test_training_sees_the_same_batches(self, original, tmp_path, store, policy):
        batches = functools.partial(train_batches, batch_size=6, seed=1, start_step=1)
        kept = cached_split(original, store(original, tmp_path, resized=policy == "none"))
        with (
            batches(original, PREPROCESSING, policy) as expected,
            batches(kept, PREPROCESSING, policy) as actual,
        ):
            for a, e in itertools.islice(zip(actual, expected, strict=True), 8):
                np.testing.assert_array_equal(a["image"], e["image"])
                np.testing.assert_array_equal(a["label"], e["label"])

    @pytest.mark.parametrize("hosts", [1, 2])
    def test_every_host_evaluates_the_same_batches(self, original, tmp_path, store, hosts):
        kept = cached_split(original, store(original, tmp_path))
        for host in range(hosts):
            options = {"batch_size": 6, "process_index": host, "process_count": hosts}
            with (
                eval_batches(original, PREPROCESSING, **options) as expected,
                eval_batches(kept, PREPROCESSING, **options) as actual,
            ):
                for a, e in zip(actual, expected, strict=True):
                    for key in e:
                        np.testing.assert_array_equal(a[key], e[key])

    def test_each_image_is_decoded_once(self, original, tmp_path, store):
        images = store(original, tmp_path)
        for _ in range(3):
            for index in reversed(range(COUNT)):
                images[index]
        # On disk, also once for its content.
        assert set(original.images.reads) == ({1} if store is in_memory else {2})

    def test_it_is_the_same_split_otherwise(self, original, tmp_path, store):
        kept = cached_split(original, store(original, tmp_path))
        assert len(kept) == COUNT and kept.groups is None
        assert kept.describe(3) == original.describe(3)
        np.testing.assert_array_equal(kept.labels, original.labels)
        assert [kept[i]["label"] for i in range(4)] == [0, 1, 0, 1]

    def test_an_image_that_cannot_be_decoded_is_named(self, noise_png, tmp_path, store):
        damaged = LabelledImages([noise_png(0), noise_png(1)[:60]], [0, 1])
        with pytest.raises(ValueError, match=r"^image 1: not a"):
            store(damaged, tmp_path)[1]
        assert list(tmp_path.iterdir()) == []


class TestOnDisk:
    def test_a_later_run_finds_it(self, original, noise_png, tmp_path):
        on_disk(original, tmp_path)[0]
        (file,) = tmp_path.iterdir()
        written = file.stat().st_mtime_ns
        again = split(noise_png)
        expected = DecodedImages(original, PREPROCESSING, resized=True)
        images = on_disk(again, tmp_path)
        for index in range(COUNT):
            np.testing.assert_array_equal(images[index], expected[index])
        assert set(again.images.reads) == {1}  # for their content, not to decode them
        assert [f.stat().st_mtime_ns for f in tmp_path.iterdir()] == [written]

    @pytest.mark.parametrize(
        "change",
        [
            {"image_size": (33, 40)},
            {"channels": 1},
            {"resize_filter": "nearest"},
            {"window": "full"},
        ],
    )
    def test_other_preprocessing_is_another_file(self, original, tmp_path, change):
        on_disk(original, tmp_path)[0]
        changed = dataclasses.replace(PREPROCESSING, **change)
        images = on_disk(original, tmp_path, changed)
        np.testing.assert_array_equal(images[2], DecodedImages(original, changed, resized=True)[2])
        assert len(list(tmp_path.iterdir())) == 2

    def test_images_at_their_own_size_are_another_file(self, original, tmp_path):
        on_disk(original, tmp_path)[0]
        assert on_disk(original, tmp_path, resized=False)[3].shape == (33, 28, 3)
        assert len(list(tmp_path.iterdir())) == 2

    def test_normalisation_is_not_in_it(self, original, tmp_path):
        on_disk(original, tmp_path)[0]
        on_disk(original, tmp_path, dataclasses.replace(PREPROCESSING, mean=(0.1,), std=(2.0,)))[0]
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_changed_file_of_the_same_size_is_noticed(self, tmp_path):
        root, folder = tmp_path / "images", tmp_path / "cache"
        for name in ("train", "val", "test"):
            for label in "ab":
                (root / name / label).mkdir(parents=True)
                np.save(root / name / label / "0.npy", np.full((32, 32), 7, np.uint8))
        config = DataConfig(path=str(root), image_size=32)
        preprocessing = Preprocessing.from_config(config, 1)

        def first_pixel():
            source = build_dataset(config).splits["train"]
            return on_disk(source, folder, preprocessing)[1][0, 0, 0]

        assert first_pixel() == 7
        changed = root / "train" / "b" / "0.npy"
        size = changed.stat().st_size
        np.save(changed, np.full((32, 32), 8, np.uint8))
        assert changed.stat().st_size == size
        assert first_pixel() == 8

    @pytest.mark.parametrize("kept_bytes", [0, 100, -1])
    def test_half_a_file_is_not_trusted(self, original, tmp_path, kept_bytes):
        on_disk(original, tmp_path)[0]
        (file,) = tmp_path.iterdir()
        whole = file.read_bytes()
        file.write_bytes(whole[:kept_bytes])
        images = on_disk(original, tmp_path)
        expected = DecodedImages(original, PREPROCESSING, resized=True)
        np.testing.assert_array_equal(images[COUNT - 1], expected[COUNT - 1])
        assert len(file.read_bytes()) == len(whole)

    def test_a_shorter_file_is_not_trusted(self, original, noise_png, tmp_path):
        on_disk(original, tmp_path)[0]
        (whole,) = tmp_path.iterdir()
        on_disk(split(noise_png, range(3)), tmp_path / "other")[0]
        (short,) = (tmp_path / "other").iterdir()
        short.replace(whole)
        images = on_disk(original, tmp_path)
        expected = DecodedImages(original, PREPROCESSING, resized=True)[0]
        np.testing.assert_array_equal(images[0], expected)

    def test_an_interrupted_writer_leaves_nothing_with_the_name(self, original, tmp_path):
        class Interrupted(DecodedImages):
            def __getitem__(self, index):
                if index == COUNT - 1:
                    names.extend(path.suffix for path in tmp_path.iterdir())
                    raise KeyboardInterrupt
                return super().__getitem__(index)

        names = []
        with pytest.raises(KeyboardInterrupt):
            OnDisk(Interrupted(original, PREPROCESSING, resized=True), tmp_path)[0]
        assert names == [".partial"]
        assert list(tmp_path.iterdir()) == []

    def test_threads_write_it_once(self, original, tmp_path):
        images = on_disk(original, tmp_path)
        threads = [threading.Thread(target=images.__getitem__, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(original.images.reads) == {2}

    def test_workers_read_what_the_main_process_wrote(self, noise_png, tmp_path):
        source = LabelledImages(
            [noise_png(seed, (30, 28, 3)) for seed in range(COUNT)], [0] * COUNT
        )
        kept = cached_split(source, on_disk(source, tmp_path))
        options = {"batch_size": 6, "seed": 1}
        with (
            train_batches(source, PREPROCESSING, "none", **options) as expected,
            train_batches(kept, PREPROCESSING, "none", num_workers=2, **options) as actual,
        ):
            for a, e in itertools.islice(zip(actual, expected, strict=True), 7):
                np.testing.assert_array_equal(a["image"], e["image"])
        assert len(list(tmp_path.iterdir())) == 1


GIB = 2**30


@pytest.mark.parametrize(
    ("cache", "size", "augmented", "workers", "expected"),
    [
        ("none", 1, False, 0, "none"),
        ("none", 1, True, 2, "none"),
        ("memory", 99 * GIB, True, 0, "memory"),
        ("memory", 1, False, 2, "disk"),
        ("disk", 1, True, 0, "disk"),
        ("disk", 99 * GIB, False, 2, "disk"),
        ("auto", GIB, False, 0, "memory"),
        ("auto", GIB, True, 0, "memory"),
        ("auto", 3 * GIB, False, 0, "disk"),
        ("auto", 3 * GIB, True, 0, "none"),
        ("auto", 9 * GIB, False, 0, "none"),
        ("auto", GIB, False, 2, "disk"),
        ("auto", GIB, True, 2, "none"),
        ("auto", 9 * GIB, False, 2, "none"),
    ],
)
def test_the_table(cache, size, augmented, workers, expected):
    free = {"memory": 2 * GIB, "disk": 8 * GIB}
    assert CACHES[cache](Need(size, augmented, workers, free)) == expected


class TestCached:
    def dataset(self, noise_png):
        splits = {
            name: split(noise_png, range(start, start + 20))
            for start, name in ((0, "train"), (20, "val"), (40, "test"))
        }
        return Dataset(splits)

    def test_splits_share_what_is_free(self, noise_png, tmp_path, monkeypatch):
        config = DataConfig(image_size=64, cache_dir=str(tmp_path))
        preprocessing = Preprocessing.from_config(config, 3)
        size = 20 * 64 * 64 * 3
        monkeypatch.setattr(caching, "available_memory", lambda: 5 * size)  # two fit into half
        dataset, text = cached(self.dataset(noise_png), preprocessing, config)
        kinds = [type(dataset.splits[name].images) for name in ("train", "val", "test")]
        assert kinds == [InMemory, InMemory, OnDisk]
        assert text == f"train 0.2 MiB in memory, val 0.2 MiB in memory, test 0.2 MiB in {tmp_path}"

    def test_what_is_augmented_keeps_its_size(self, noise_png):
        config = DataConfig(image_size=64, augmentation="light", cache="memory")
        dataset, _ = cached(self.dataset(noise_png), Preprocessing.from_config(config, 3), config)
        assert dataset.splits["train"].read(0).shape == (30, 28, 3)
        assert dataset.splits["val"].read(0).shape == (64, 64, 3)

    def test_none(self, noise_png):
        config = DataConfig(cache="none")
        original = self.dataset(noise_png)
        dataset, text = cached(original, Preprocessing.from_config(config, 3), config)
        assert dataset.splits == original.splits
        assert text == "train not kept, val not kept, test not kept"

    def test_what_is_there_is_used_though_nothing_is_free(self, noise_png, tmp_path, monkeypatch):
        config = DataConfig(image_size=64, cache="disk", cache_dir=str(tmp_path))
        preprocessing = Preprocessing.from_config(config, 3)
        written, _ = cached(self.dataset(noise_png), preprocessing, config)
        open_caches(written.splits[name] for name in ("train", "val"))
        assert len(list(tmp_path.iterdir())) == 2
        monkeypatch.setattr(caching, "available_memory", lambda: 0)
        monkeypatch.setattr(caching, "_free_disk", lambda folder: 0)

        original = self.dataset(noise_png)
        config = dataclasses.replace(config, cache="auto")
        dataset, text = cached(original, preprocessing, config)
        assert text == f"train 0.2 MiB in {tmp_path}, val 0.2 MiB in {tmp_path}, test not kept"
        open_caches(dataset.splits.values())
        for row in range(COUNT):
            image = dataset.splits["train"].read(row)
            np.testing.assert_array_equal(image, written.splits["train"].read(row))
        assert set(original.splits["train"].images.reads) == {1}  # for its content
        assert len(list(tmp_path.iterdir())) == 2

        (tmp_path / "0.array_record").write_bytes(bytes(1000))
        larger = dataclasses.replace(config, image_size=128)
        original = self.dataset(noise_png)
        _, text = cached(original, Preprocessing.from_config(larger, 3), larger)
        assert text == "train not kept, val not kept, test not kept"
        assert not any(split.images.reads.any() for split in original.splits.values())

    def test_what_is_augmented_is_not_looked_for(self, noise_png, tmp_path, monkeypatch):
        config = DataConfig(
            image_size=32, augmentation="light", cache="disk", cache_dir=str(tmp_path)
        )
        preprocessing = Preprocessing.from_config(config, 3)
        open_caches(cached(self.dataset(noise_png), preprocessing, config)[0].splits.values())
        monkeypatch.setattr(caching, "available_memory", lambda: 0)
        auto = dataclasses.replace(config, cache="auto")
        dataset, _ = cached(self.dataset(noise_png), preprocessing, auto)
        assert not isinstance(dataset.splits["train"].images, OnDisk)
        assert isinstance(dataset.splits["val"].images, OnDisk)

    def test_files_are_written_when_they_are_opened(self, noise_png, tmp_path):
        original = self.dataset(noise_png)
        config = DataConfig(image_size=64, cache="disk", cache_dir=str(tmp_path))
        dataset, _ = cached(original, Preprocessing.from_config(config, 3), config)
        assert list(tmp_path.iterdir()) == []
        open_caches([original.splits["test"], dataset.splits["val"]])
        (file,) = tmp_path.iterdir()
        written = file.stat().st_mtime_ns
        dataset.splits["val"][3]
        assert file.stat().st_mtime_ns == written
        assert (
            set(original.splits["val"].images.reads) == {2}
            and not original.splits["test"].images.reads.any()
        )

    @pytest.mark.parametrize("name", ["file/cache", "file"])
    def test_a_folder_that_cannot_be_is_refused(self, noise_png, tmp_path, name):
        (tmp_path / "file").touch()
        config = DataConfig(cache="disk", cache_dir=str(tmp_path / name))
        with pytest.raises(ValueError, match=r"data\.cache_dir: .*name another"):
            cached(self.dataset(noise_png), Preprocessing.from_config(config, 3), config)


def test_a_control_group_limits_the_memory(tmp_path, monkeypatch):
    free = available_memory()
    assert 2**20 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(caching, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000000\n")
    for limit, expected in (("3000000\n", 2_000_000), ("900000\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert available_memory() == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 3_000_000
