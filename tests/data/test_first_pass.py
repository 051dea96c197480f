"""The pass over all images, and the store of their pixels, compared with decoding each time."""

import dataclasses
import functools
import hashlib
import io
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import (
    DataConfig,
    LabelledImages,
    Preprocessing,
    eval_batches,
    train_batches,
)
from medmamba_jax.data import first_pass as module
from medmamba_jax.data.build import prepare
from medmamba_jax.data.first_pass import first_pass
from medmamba_jax.data.free_memory import available_memory
from medmamba_jax.data.reading.store import OnDisk, decoded
from medmamba_jax.errors import UserError

COUNT = 40
PREPROCESSING = Preprocessing((32, 40), 3, "bilinear", (0.5,), (0.5,))


class Counting:
    """Counts how often an image is read."""

    def __init__(self, images):
        self.images = list(images)
        self.reads = np.zeros(len(self.images), int)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        self.reads[place] += 1
        return self.images[place]


@pytest.fixture
def images(noise_png):
    files = [noise_png(seed, (30 + seed % 5, 28, 3)) for seed in range(COUNT)]
    return LabelledImages(Counting(files), np.arange(COUNT) % 2)


@pytest.fixture
def decodes(monkeypatch):
    """The numbers of files that were decoded, as a list that grows."""
    found = []
    decode = Preprocessing.decode

    def counted(self, image):
        if isinstance(image, bytes):
            found.append(image)
        return decode(self, image)

    monkeypatch.setattr(Preprocessing, "decode", counted)
    return found


def config(tmp_path, **settings):
    settings = {"image_size": (32, 40), "cache_dir": str(tmp_path / "kept")} | settings
    return DataConfig(**settings)


def pixel_files(tmp_path):
    return sorted((tmp_path / "kept").glob("*.pixels"))


each_cache = pytest.mark.parametrize("cache", ["none", "memory", "disk"])


@each_cache
@pytest.mark.parametrize("policy", ["none", "official", "light"])
def test_training_sees_the_same_batches(images, tmp_path, cache, policy):
    settings = config(tmp_path, cache=cache, augmentation=policy)
    kept = first_pass(images, PREPROCESSING, settings).images
    batches = functools.partial(train_batches, batch_size=6, seed=1, start_step=1)
    with (
        batches(images, PREPROCESSING, policy) as expected,
        batches(kept, PREPROCESSING, policy) as actual,
    ):
        for a, e in itertools.islice(zip(actual, expected, strict=True), 12):
            np.testing.assert_array_equal(a["image"], e["image"])
            np.testing.assert_array_equal(a["label"], e["label"])


def test_what_the_step_augments_is_kept_resized_and_read_as_it_is(images, tmp_path):
    settings = config(tmp_path, cache="memory", augmentation="strong")
    kept = first_pass(images, PREPROCESSING, settings).images
    assert kept.read(3).shape == (32, 40, 3)
    options = {"batch_size": 6, "seed": 1}
    with (
        train_batches(images, PREPROCESSING, "none", **options) as expected,
        train_batches(kept, PREPROCESSING, "strong", **options) as actual,
    ):
        np.testing.assert_array_equal(next(actual)["image"], next(expected)["image"])


@each_cache
@pytest.mark.parametrize("hosts", [1, 2])
def test_every_host_evaluates_the_same_batches(images, tmp_path, cache, hosts):
    kept = first_pass(images, PREPROCESSING, config(tmp_path, cache=cache)).images
    for host in range(hosts):
        options = {"batch_size": 6, "process_index": host, "process_count": hosts}
        with (
            eval_batches(images, PREPROCESSING, **options) as expected,
            eval_batches(kept, PREPROCESSING, **options) as actual,
        ):
            for a, e in zip(actual, expected, strict=True):
                for key in e:
                    np.testing.assert_array_equal(a[key], e[key])


@each_cache
def test_each_file_is_read_and_decoded_once_before_the_first_step(images, tmp_path, cache, decodes):
    seen = first_pass(images, PREPROCESSING, config(tmp_path, cache=cache))
    assert set(images.images.reads) == {1} and len(decodes) == COUNT
    assert seen.images.digest() == images.digest()
    images.images.reads[:] = 0
    for row in range(COUNT):
        seen.images.read(row)
    assert images.images.reads.sum() == (COUNT if cache == "none" else 0)


@each_cache
def test_a_second_start_decodes_nothing(images, tmp_path, cache, decodes):
    settings = config(tmp_path, cache=cache)
    first = first_pass(images, PREPROCESSING, settings)
    expected = [first.images.read(row) for row in range(COUNT)]
    decodes.clear()
    images.images.reads[:] = 0
    again = first_pass(images, PREPROCESSING, settings)
    assert not decodes and set(images.images.reads) == {1}
    assert again.facts.of.tobytes() == first.facts.of.tobytes()
    for row in range(COUNT):
        np.testing.assert_array_equal(again.images.read(row), expected[row])


def test_only_a_changed_file_is_decoded_again(images, tmp_path, decodes, noise_png):
    settings = config(tmp_path, cache="memory")
    first_pass(images, PREPROCESSING, settings)
    decodes.clear()
    images.images.images[7] = changed = noise_png(99)
    seen = first_pass(images, PREPROCESSING, settings)
    assert decodes == [changed]
    assert seen.facts.of["content"][7].tobytes() == hashlib.sha256(changed).digest()
    assert seen.images.digest() == images.digest()


def test_a_changed_file_is_another_file_of_pixels(images, tmp_path, noise_png):
    settings = config(tmp_path, cache="disk")
    first_pass(images, PREPROCESSING, settings)
    images.images.images[7] = changed = noise_png(99)
    kept = first_pass(images, PREPROCESSING, settings).images
    np.testing.assert_array_equal(kept.read(7), PREPROCESSING.resize(PREPROCESSING.decode(changed)))
    assert len(pixel_files(tmp_path)) == 2


def test_facts_are_those_of_the_pixels(images, tmp_path):
    facts = first_pass(images, PREPROCESSING, config(tmp_path, cache="none")).facts
    for row in range(COUNT):
        pixels = np.asarray(Image.open(io.BytesIO(images.read(row))))
        assert facts.of["size"][row].tolist() == [28, 30 + row % 5] == list(pixels.shape[1::-1])
        identity = hashlib.sha256(f"{pixels.shape} ".encode() + pixels.tobytes()).digest()
        assert facts.of["pixels"][row].tobytes() == identity[:16]


@pytest.mark.parametrize(
    "change",
    [{"image_size": (33, 40)}, {"channels": 1}, {"resize_filter": "nearest"}, {"window": "full"}],
)
def test_other_preprocessing_is_another_file(images, tmp_path, change):
    settings = config(tmp_path, cache="disk")
    first_pass(images, PREPROCESSING, settings)
    changed = dataclasses.replace(PREPROCESSING, **change)
    kept = first_pass(images, changed, settings).images
    np.testing.assert_array_equal(kept.read(2), changed.resize(decoded(images, 2, changed)))
    assert len(pixel_files(tmp_path)) == 2


def test_images_to_be_augmented_are_another_file_and_normalisation_is_in_none(images, tmp_path):
    settings = config(tmp_path, cache="disk")
    first_pass(images, PREPROCESSING, settings)
    first_pass(images, dataclasses.replace(PREPROCESSING, mean=(0.1,), std=(2.0,)), settings)
    assert len(pixel_files(tmp_path)) == 1
    augmented = dataclasses.replace(settings, augmentation="light")
    kept = first_pass(images, PREPROCESSING, augmented).images
    assert kept.read(3).shape == (33, 28, 3) and len(pixel_files(tmp_path)) == 2


@pytest.mark.parametrize("kept_bytes", [0, 100, -1])
def test_half_a_file_is_not_trusted(images, tmp_path, kept_bytes):
    settings = config(tmp_path, cache="disk")
    first_pass(images, PREPROCESSING, settings)
    (file,) = pixel_files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:kept_bytes])
    assert OnDisk.find(file) is None
    kept = first_pass(images, PREPROCESSING, settings).images
    np.testing.assert_array_equal(
        kept.read(COUNT - 1), PREPROCESSING.resize(decoded(images, COUNT - 1, PREPROCESSING))
    )
    assert file.read_bytes() == whole


def test_an_interrupted_pass_leaves_nothing(images, tmp_path):
    class Interrupted(Counting):
        def __getitem__(self, place):
            if place == COUNT - 1:
                raise KeyboardInterrupt
            return super().__getitem__(place)

    broken = dataclasses.replace(images, images=Interrupted(images.images.images))
    with pytest.raises(KeyboardInterrupt):
        first_pass(broken, PREPROCESSING, config(tmp_path, cache="disk"))
    assert [path for path in (tmp_path / "kept").rglob("*") if path.is_file()] == []


@each_cache
def test_a_damaged_image_is_a_fact_and_named_when_it_is_read(images, tmp_path, cache, noise_png):
    images.images.images[3] = noise_png(3)[:60]
    for _ in range(2):
        seen = first_pass(images, PREPROCESSING, config(tmp_path, cache=cache))
        assert list(seen.facts.problems) == [3] and seen.facts.problems[3].startswith("not a")
        with pytest.raises(UserError, match=r"^image 3: not a complete") as error:
            decoded(seen.images, 3, PREPROCESSING)
        assert str(error.value).count("image 3") == 1
        expected = PREPROCESSING.resize(decoded(images, 4, PREPROCESSING))
        np.testing.assert_array_equal(
            PREPROCESSING.resize(decoded(seen.images, 4, PREPROCESSING)), expected
        )


def test_without_facts_only_content_is_looked_at(images, tmp_path, decodes):
    seen = first_pass(images, PREPROCESSING, config(tmp_path, audit=False))
    assert not decodes and seen.facts is None
    assert seen.images.digest() == images.digest()
    images.images.images[3] = b"nothing"
    with pytest.raises(UserError, match=r"^image 3: not an image"):
        first_pass(images, PREPROCESSING, config(tmp_path, audit=False, cache="disk"))


def test_threads_and_copies_read_the_same_file(images, tmp_path):
    kept = first_pass(images, PREPROCESSING, config(tmp_path, cache="disk")).images
    copy = pickle.loads(pickle.dumps(kept))
    order = np.random.default_rng(0).integers(0, COUNT, 400)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: copy.read(int(row)), order))
    for row, pixels in zip(order, found, strict=True):
        np.testing.assert_array_equal(pixels, kept.read(int(row)))


def test_workers_read_what_the_main_process_wrote(noise_png, tmp_path):
    files = [noise_png(seed, (30, 28, 3)) for seed in range(20)]
    images = LabelledImages(files, np.arange(20) % 2)
    settings = config(tmp_path, cache="memory", num_workers=2)  # which the table takes as disk
    seen = first_pass(images, PREPROCESSING, settings)
    assert seen.kind == "disk"
    options = {"batch_size": 6, "seed": 1}
    with (
        train_batches(images, PREPROCESSING, "none", **options) as expected,
        train_batches(seen.images, PREPROCESSING, "none", num_workers=2, **options) as actual,
    ):
        for a, e in itertools.islice(zip(actual, expected, strict=True), 7):
            np.testing.assert_array_equal(a["image"], e["image"])


class TestPlaces:
    SIZE = COUNT * 32 * 40 * 3

    def kinds(self, images, settings, monkeypatch, memory, disk):
        monkeypatch.setattr(module, "available_memory", lambda: 2 * memory)
        monkeypatch.setattr(module, "_free_disk", lambda folder: 2 * disk)
        return prepare(images, settings, PREPROCESSING)

    def test_what_fits_into_memory(self, images, tmp_path, monkeypatch):
        for memory, disk, text in (
            (self.SIZE, 0, "0.1 MiB in memory"),
            (self.SIZE - 1, self.SIZE, f"0.1 MiB in {tmp_path / 'kept'}"),
        ):
            ready = self.kinds(images, config(tmp_path), monkeypatch, memory, disk)
            assert ready.cache == text

    def test_what_is_there_is_used_though_nothing_is_free(
        self, images, tmp_path, monkeypatch, decodes
    ):
        first_pass(images, PREPROCESSING, config(tmp_path, cache="disk"))
        decodes.clear()
        ready = self.kinds(images, config(tmp_path), monkeypatch, 0, 0)
        assert ready.cache == f"0.1 MiB in {tmp_path / 'kept'}"
        ready.dataset.splits["train"].read(0)
        assert not decodes

    @pytest.mark.parametrize("cache", ["memory", "disk"])
    def test_what_is_augmented_keeps_its_size(self, images, tmp_path, cache):
        settings = config(tmp_path, cache=cache, augmentation="light")
        dataset = prepare(images, settings, PREPROCESSING).dataset
        assert dataset.splits["train"].read(0).shape[1:] == (28, 3)
        expected = (32, 40, 3) if cache == "memory" else (28, 3)
        assert dataset.splits["val"].read(0).shape[-len(expected) :] == expected

    def test_evaluated_images_are_kept_though_augmented_ones_do_not_fit(
        self, images, tmp_path, monkeypatch
    ):
        settings = config(tmp_path, augmentation="light")
        part = self.SIZE * 16 // COUNT  # val and test
        ready = self.kinds(images, settings, monkeypatch, part, 0)
        assert ready.cache == "train not kept, others 0.1 MiB in memory"
        val = ready.dataset.splits["val"]
        assert val.read(0) is val.read(0) and val.read(0).shape == (32, 40, 3)
        assert ready.dataset.splits["train"].read(0).shape[1:] == (28, 3)
        ready = self.kinds(images, settings, monkeypatch, 0, part)
        assert ready.cache == f"train not kept, others 0.1 MiB in {tmp_path / 'kept'}"
        np.testing.assert_array_equal(ready.dataset.splits["val"].read(0), val.read(0))

    @pytest.mark.parametrize("cache", ["none", "auto"])
    def test_what_is_not_kept_at_all_is_said_once(self, images, tmp_path, monkeypatch, cache):
        settings = config(tmp_path, cache=cache, augmentation="light")
        assert self.kinds(images, settings, monkeypatch, 0, 0).cache == "not kept"

    @pytest.mark.parametrize("name", ["file/cache", "file"])
    def test_a_folder_that_cannot_be_written(self, images, tmp_path, name):
        (tmp_path / "file").write_text("")
        settings = config(tmp_path, cache="disk", cache_dir=str(tmp_path / name))
        with pytest.raises(UserError, match=r"data\.cache_dir: .*name another"):
            first_pass(images, PREPROCESSING, settings)


def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch):
    free = available_memory()
    monkeypatch.setattr("medmamba_jax.data.free_memory._CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000")
    (tmp_path / "memory.current").write_text("400000")
    assert available_memory() == 600000 < free
    (tmp_path / "memory.max").write_text("max")
    assert available_memory() > 600000
