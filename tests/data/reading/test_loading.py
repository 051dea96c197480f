import functools
import io
import math
import os
import subprocess
import sys
import textwrap
import time
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import (
    LabelledImages,
    Preprocessing,
    eval_batches,
    steps_per_epoch,
    train_batches,
)
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.reading.loading import batch_larger_than_set
from medmamba_jax.data.reading.order import SAMPLERS, Sampler
from medmamba_jax.errors import UserError

SIZE = 37
BATCH = 8
STEPS = 5  # in an epoch of ceil(37 / 8); its last batch takes three images of the next permutation
PREPROCESSING = Preprocessing((32, 32), 1, "bilinear", (0.5,), (0.5,))


def numbered(count):
    """A split in which every pixel of image i is i, and so is its label."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 32, 32))
    return LabelledImages(images, np.arange(count))


@pytest.fixture(scope="module")
def encoded():
    """A split of encoded images without any symmetry, larger than the model's input."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(SIZE):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return LabelledImages(images, np.arange(SIZE))


def take(batches, count):
    with batches:
        return list(islice(batches, count))


def labels(batches):
    return np.stack([batch["label"] for batch in batches])


def train_labels(count, split=None, **options):
    options = {"batch_size": BATCH, "seed": 7} | options
    split = split or numbered(SIZE)
    return labels(take(train_batches(split, PREPROCESSING, "none", **options), count))


def assert_same_batches(actual, desired):
    assert len(actual) == len(desired)
    for a, d in zip(actual, desired, strict=True):
        assert a.keys() == d.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], d[key])


class TestTrainBatches:
    def test_shapes_and_types(self, encoded):
        (batch,) = take(train_batches(encoded, PREPROCESSING, "light", batch_size=BATCH, seed=0), 1)
        assert set(batch) == {"image", "label"}
        assert batch["image"].shape == (BATCH, 32, 32, 1) and batch["image"].dtype == np.uint8
        assert batch["label"].shape == (BATCH,) and batch["label"].dtype == np.int32

    def test_images_keep_their_labels(self):
        batches = train_batches(numbered(SIZE), PREPROCESSING, "none", batch_size=BATCH, seed=1)
        for batch in take(batches, 10):
            expected = np.broadcast_to(batch["label"][:, None, None, None], (BATCH, 32, 32, 1))
            np.testing.assert_array_equal(batch["image"], expected)

    def test_the_stream_is_one_permutation_after_another(self):
        stream = train_labels(40 * STEPS).ravel()
        permutations = stream[: 40 * SIZE].reshape(40, SIZE)
        np.testing.assert_array_equal(np.sort(permutations), [range(SIZE)] * 40)
        # No two are alike, and an image has no place of its own.
        assert len({tuple(permutation) for permutation in permutations}) == 40
        assert all(len(set(column)) > 15 for column in permutations.T)

    @pytest.mark.parametrize("count", [1, 3, 5, 7, 8, 9, 16, 37])
    @pytest.mark.parametrize("batch_size", [1, 8])
    def test_every_image_comes_equally_often(self, count, batch_size):
        steps = steps_per_epoch(numbered(count), batch_size)
        epochs = 6
        drawn = train_labels(epochs * steps, numbered(count), batch_size=batch_size)
        for k in range(1, epochs + 1):
            rows = k * math.ceil(count / batch_size) * batch_size
            seen = np.bincount(drawn[: k * steps].ravel(), minlength=count)
            assert seen.sum() == rows
            assert seen.min() == rows // count >= k and seen.max() == math.ceil(rows / count)

    def test_the_batch_size_only_cuts_the_stream(self):
        expected = train_labels(3 * SIZE, batch_size=1).ravel()
        for batch_size in (5, 17, 33, 37, 50):  # 17 and more are read in several parts
            steps = len(expected) // batch_size
            actual = train_labels(steps, batch_size=batch_size).ravel()
            np.testing.assert_array_equal(actual, expected[: len(actual)])

    def test_seeds_give_unrelated_orders(self):
        first, second = (train_labels(2 * SIZE, seed=seed, batch_size=1) for seed in (0, 1))
        assert np.mean(first == second) < 0.2
        # Nor is one seed's stream that of another seed, one permutation later.
        assert np.mean(first[SIZE:] == second[:SIZE]) < 0.2

    def test_a_batch_larger_than_the_set_is_possible_and_warned_of(self, caplog):
        with caplog.at_level("WARNING", logger="absl"):
            (drawn,) = train_labels(1, numbered(3))
        assert sorted(np.bincount(drawn)) == [2, 3, 3]
        (record,) = caplog.records
        assert record.getMessage() == batch_larger_than_set(numbered(3), BATCH)
        assert "batch of 8 is larger than the training set of 3 images" in record.getMessage()

    def test_a_batch_as_large_as_the_set_is_not_warned_of(self, caplog):
        with caplog.at_level("WARNING", logger="absl"):
            train_labels(1, numbered(BATCH))
        assert not caplog.records and batch_larger_than_set(numbered(BATCH), BATCH) is None

    def test_augmentation_differs_between_epochs_and_images(self, encoded):
        one = LabelledImages([encoded.read(0)] * BATCH, np.arange(BATCH))
        batches = take(train_batches(one, PREPROCESSING, "light", batch_size=BATCH, seed=0), 3)
        images = np.concatenate([batch["image"] for batch in batches])
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 3 * BATCH

    @pytest.mark.parametrize("start_step", [1, STEPS - 1, STEPS, 3 * STEPS + 2])
    def test_a_resumed_run_sees_the_same_pixels(self, encoded, start_step):
        batches = functools.partial(
            train_batches, encoded, PREPROCESSING, "official", batch_size=BATCH, seed=3
        )
        expected = take(batches(), start_step + STEPS + 1)[start_step:]
        assert_same_batches(take(batches(start_step=start_step), STEPS + 1), expected)

    @pytest.mark.parametrize("hosts", [2, 4])
    def test_hosts_share_each_global_batch(self, encoded, hosts):
        batches = functools.partial(
            train_batches, encoded, PREPROCESSING, "official", batch_size=BATCH, seed=3
        )
        whole = take(batches(start_step=2), STEPS)
        parts = [
            take(batches(start_step=2, process_index=p, process_count=hosts), STEPS)
            for p in range(hosts)
        ]
        for p, part in enumerate(parts):
            own = slice(p * BATCH // hosts, (p + 1) * BATCH // hosts)
            shares = [{key: batch[key][own] for key in batch} for batch in whole]
            assert_same_batches(part, shares)

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"batch_size": 0}, "positive multiple"),
            ({"process_count": 3}, "multiple of the 3 hosts; got 8"),
            ({"process_index": 2, "process_count": 2}, r"process_index must be in \[0, 2\)"),
            ({"seed": -1}, "seed must be in"),
            ({"start_step": -1}, "start_step must be 0 or more"),
            ({"num_workers": -1}, "num_workers must be 0 or more"),
        ],
    )
    def test_impossible_requests_are_refused_at_once(self, options, problem):
        options = {"batch_size": BATCH, "seed": 0} | options
        with pytest.raises(UserError, match=problem):
            train_batches(numbered(SIZE), PREPROCESSING, "none", **options)

    def test_an_empty_split_is_refused(self):
        with pytest.raises(UserError, match="holds no images"):
            train_batches(numbered(0), PREPROCESSING, "none", batch_size=BATCH, seed=0)

    def test_unknown_augmentation_is_refused(self):
        with pytest.raises(UserError, match=r"must be one of .*'light'.*got 'heavy'"):
            train_batches(numbered(SIZE), PREPROCESSING, "heavy", batch_size=BATCH, seed=0)

    def test_a_damaged_image_stops_the_run(self, encoded):
        damaged = LabelledImages([encoded.read(0)[:1000]] * BATCH, np.arange(BATCH))
        batches = train_batches(damaged, PREPROCESSING, "none", batch_size=BATCH, seed=0)
        with batches, pytest.raises(UserError, match=r"image \d+: not a complete image file"):
            next(batches)

    @pytest.mark.parametrize("augmentation", ["none", "official", "light"])
    def test_any_number_of_channels(self, augmentation):
        grey = np.random.default_rng(0).integers(0, 256, (BATCH, 40, 50, 1), dtype=np.uint8)
        split = LabelledImages(np.repeat(grey, 5, axis=3), np.arange(BATCH))
        five = Preprocessing((32, 32), 5, "bilinear", (0.5,), (0.5,))
        (batch,) = take(train_batches(split, five, augmentation, batch_size=BATCH, seed=0), 1)
        assert batch["image"].shape == (BATCH, 32, 32, 5)
        # The same was done to every channel.
        np.testing.assert_array_equal(batch["image"], np.repeat(batch["image"][..., :1], 5, 3))
        assert len(np.unique(batch["image"][..., 0], axis=0)) == BATCH

    @pytest.mark.parametrize(("sampler", "start_step"), [("shuffle", 0), ("balanced", STEPS + 1)])
    def test_weights_follow_their_images(self, sampler, start_step):
        images = np.broadcast_to(np.arange(SIZE, dtype=np.uint8)[:, None, None], (SIZE, 32, 32))
        split = LabelledImages(images, np.arange(SIZE) % 3, weights=np.arange(SIZE) / 8 + 0.125)
        options = {"batch_size": BATCH, "seed": 1, "sampler": sampler, "start_step": start_step}
        for batch in take(train_batches(split, PREPROCESSING, "none", **options), STEPS + 1):
            assert batch["weight"].shape == (BATCH,) and batch["weight"].dtype == np.float32
            np.testing.assert_array_equal(batch["weight"], batch["image"][:, 0, 0, 0] / 8 + 0.125)
        (batch,) = take(eval_batches(split, PREPROCESSING, batch_size=SIZE), 1)
        assert "weight" not in batch


class TestBalancedSampler:
    SIZES = (28, 8, 1)

    def batches(self, **options):
        classes = np.repeat(np.arange(3), self.SIZES)
        images = np.arange(SIZE, dtype=np.uint8)[:, None, None] + np.zeros((1, 32, 32), np.uint8)
        options = {"batch_size": BATCH, "seed": 7, "sampler": "balanced"} | options
        return train_batches(LabelledImages(images, classes), PREPROCESSING, "none", **options)

    def drawn(self, steps, **options):
        """Labels and images in the order of drawing."""
        batches = take(self.batches(**options), steps)
        images = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
        return labels(batches).ravel(), images

    def test_classes_come_equally_often(self):
        drawn, _ = self.drawn(3 * STEPS)
        for count in range(1, len(drawn) + 1):
            assert np.ptp(np.bincount(drawn[:count], minlength=3)) <= 1
        for epoch in drawn.reshape(3, STEPS * BATCH):
            assert sorted(np.bincount(epoch)) == [13, 13, 14]

    def test_images_keep_their_labels_and_none_is_left_out(self):
        drawn, images = self.drawn(30 * STEPS)
        np.testing.assert_array_equal(drawn, np.repeat(np.arange(3), self.SIZES)[images])
        # Each class: permutation after permutation of all its images, no two alike.
        for label, size in enumerate(self.SIZES):
            of_class = images[drawn == label]
            rounds = of_class[: len(of_class) // size * size].reshape(-1, size)
            assert (np.sort(rounds) == np.unique(of_class)).all() and len(rounds) >= 11
            assert size == 1 or len(np.unique(rounds, axis=0)) == len(rounds)

    def test_classes_of_one_size_are_shuffled_apart(self):
        split = LabelledImages(
            np.zeros((40, 32, 32), np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None],
            np.arange(40) // 20,
        )
        batches = train_batches(
            split, PREPROCESSING, "none", batch_size=40, seed=0, sampler="balanced"
        )
        ((first, second),) = (b["image"][:, 0, 0, 0].reshape(20, 2).T for b in take(batches, 1))
        assert (first != second - 20).any()

    def test_seeds_and_epochs_give_other_orders(self):
        images = self.drawn(2 * STEPS)[1].reshape(2, -1)
        assert (images[0] != images[1]).any()
        assert (self.drawn(2 * STEPS, seed=8)[1] != images.ravel()).mean() > 0.4

    def test_resuming_changes_nothing(self):
        expected = take(self.batches(), 3 * STEPS)[STEPS + 1 :]
        actual = take(self.batches(start_step=STEPS + 1), len(expected))
        assert_same_batches(actual, expected)

    @pytest.mark.parametrize("hosts", [2, 4])
    def test_hosts_share_each_global_batch(self, hosts):
        whole = take(self.batches(start_step=2), STEPS)
        for p in range(hosts):
            part = self.batches(start_step=2, process_index=p, process_count=hosts)
            own = slice(p * BATCH // hosts, (p + 1) * BATCH // hosts)
            shares = [{key: batch[key][own] for key in batch} for batch in whole]
            assert_same_batches(take(part, STEPS), shares)

    def test_refusals(self):
        with pytest.raises(UserError, match=r"sampler must be one of .*got 'weighted'"):
            self.batches(sampler="weighted")
        split = LabelledImages(np.zeros((8, 32, 32), np.uint8), np.ones((8, 3)))
        problem = r"any number of classes each; use one of \['shuffle'\], and weights in the loss"
        with pytest.raises(UserError, match=problem):
            train_batches(split, PREPROCESSING, "none", batch_size=8, seed=0, sampler="balanced")


class TestMultilabel:
    LABELS = np.array([[1, 0], [np.nan, 1], [0, 0], [1, np.nan], [0, 1]], np.float32)
    SPLIT = LabelledImages(np.zeros((5, 32, 32), np.uint8), LABELS)

    def test_training_carries_the_labels(self):
        (batch,) = take(train_batches(self.SPLIT, PREPROCESSING, "none", batch_size=5, seed=0), 1)
        assert batch["label"].dtype == np.float32
        drawn = batch["label"][np.lexsort(batch["label"].T)]
        np.testing.assert_array_equal(drawn, self.LABELS[np.lexsort(self.LABELS.T)])

    def test_evaluation_fills_up_with_masked_zeros(self):
        (batch,) = take(eval_batches(self.SPLIT, PREPROCESSING, batch_size=BATCH), None)
        assert (
            batch["label"].dtype == np.float32
            and batch["mask"].tolist() == [True] * 5 + [False] * 3
        )
        np.testing.assert_array_equal(batch["label"][:5], self.LABELS)
        np.testing.assert_array_equal(batch["label"][5:], np.zeros((3, 2)))


class TestAddedFromOutside:
    """A user's script assigns into the tables; nothing else lists the names."""

    def test_a_sampler(self, monkeypatch):
        def backwards(split, seed):
            return lambda row: (seed - row) % len(split)

        monkeypatch.setitem(SAMPLERS, "backwards", Sampler(backwards, "backwards"))
        drawn = train_labels(STEPS, sampler="backwards", seed=7, start_step=1).ravel()
        np.testing.assert_array_equal(drawn, (7 - BATCH - np.arange(STEPS * BATCH)) % SIZE)

    def test_a_sampler_is_only_for_its_tasks(self, monkeypatch):
        rare_first = Sampler(SAMPLERS["shuffle"].order, "rare first", ("multilabel",))
        monkeypatch.setitem(SAMPLERS, "rare_first", rare_first)
        problem = r"'rare_first' \(rare first\) is not for a multiclass .*\['shuffle', 'balanced'\]"
        with pytest.raises(UserError, match=problem):
            train_labels(1, sampler="rare_first")

    def test_a_policy(self, monkeypatch):
        def inverted(width, height, rng):
            assert (width, height) == (32, 32)
            return lambda image: image.point(lambda value: 255 - value)

        monkeypatch.setitem(POLICIES, "inverted", inverted)
        batches = train_batches(numbered(SIZE), PREPROCESSING, "inverted", batch_size=BATCH, seed=0)
        (batch,) = take(batches, 1)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], 255 - batch["label"])


class TestWorkers:
    """A worker process takes seconds to start, so each of these tests proves several things."""

    def test_workers_change_nothing_in_training(self, encoded, monkeypatch):
        """The same pixels, labels and weights in the same order, also on two hosts after a resume.

        The sampler and the policy are in the tables of this process, but not in those of workers.
        """

        def darker(width, height, rng):
            factor = rng.random()
            return lambda image: image.point(lambda value: int(factor * value))

        def strided(split, seed):
            return lambda row: seed * row % len(split)

        monkeypatch.setitem(POLICIES, "darker", darker)
        monkeypatch.setitem(SAMPLERS, "strided", Sampler(strided, "strided"))
        images = [encoded.read(i) for i in range(SIZE)]
        split = LabelledImages(images, np.arange(SIZE), weights=1 + np.arange(SIZE))
        batches = functools.partial(
            train_batches, split, PREPROCESSING, "darker", batch_size=66, seed=3, sampler="strided"
        )
        expected = take(batches(), 6)[2:]
        # Each host's batch of 33 is read in three parts, so each worker reads every other part.
        host = {"start_step": 2, "process_index": 1, "process_count": 2}
        actual = take(batches(num_workers=2, **host), 4)
        assert_same_batches(actual, [{key: b[key][33:] for key in b} for b in expected])

    def test_workers_change_nothing_in_evaluation_and_name_a_damaged_image(self, encoded):
        images = [encoded.read(i) for i in range(SIZE)]
        images[-1] = images[-1][:1000]
        options = {"batch_size": BATCH, "num_workers": 1}
        with eval_batches(
            LabelledImages(images, np.arange(SIZE)), PREPROCESSING, **options
        ) as read:
            whole = SIZE // BATCH
            expected = take(eval_batches(encoded, PREPROCESSING, batch_size=BATCH), whole)
            assert_same_batches(list(islice(read, whole)), expected)
            with pytest.raises(UserError, match=r"^image 36: not a complete image file"):
                next(read)

    PROGRAM = textwrap.dedent("""
        import multiprocessing
        import sys
        from concurrent.futures import ThreadPoolExecutor

        # The worker imports this module first, before anything that would import these.
        for name in ("jax", "jaxlib", "flax", "optax", "orbax"):
            sys.modules[name] = None

        import numpy as np
        from absl import flags
        from medmamba_jax.data import LabelledImages, Preprocessing, train_batches

        def children():
            return len(multiprocessing.active_children())

        if __name__ == "__main__":
            split = LabelledImages(np.zeros((64, 256, 256), np.uint8), np.zeros(64, int))
            preprocessing = Preprocessing((256, 256), 1, "bilinear", (0.5,), (0.5,))
            batches = [
                train_batches(
                    split, preprocessing, "light", batch_size=8, seed=0, num_workers=workers
                )
                for workers in (0, 0, 1, 1)
            ]
            with ThreadPoolExecutor() as pool:  # both workers start at the same time
                for _ in range(3):
                    list(pool.map(next, batches))
            print("workers", children())
            for iterator in batches[::2]:
                iterator.close()
                iterator.close()
            print("workers", children())
            print("flags parsed", flags.FLAGS.is_parsed())
            # What is left open must end with the program.
    """)

    def test_a_program_leaves_nothing_behind_and_needs_no_jax(self, tmp_path):
        program = tmp_path / "program.py"
        program.write_text(self.PROGRAM)
        before = _shared_memory()
        finished = subprocess.run(
            [sys.executable, "-W", "error", program],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.splitlines() == ["workers 2", "workers 1", "flags parsed False"]
        printed = finished.stderr.splitlines()
        assert [line for line in printed if "Failed to load jax profiler" not in line] == []
        # What tests beside this one use at the moment goes away; what the program left would not.
        until = time.monotonic() + 30
        while not (left := _shared_memory()) <= before and time.monotonic() < until:
            time.sleep(0.1)
        assert left <= before


class TestStepsPerEpoch:
    @pytest.mark.parametrize(
        ("batch_size", "steps"), [(1, 37), (8, 5), (36, 2), (37, 1), (38, 1), (1000, 1)]
    )
    def test_whole_batches_that_leave_no_image_out(self, batch_size, steps):
        assert steps_per_epoch(numbered(SIZE), batch_size) == steps

    @pytest.mark.parametrize(
        ("count", "batch_size", "problem"),
        [(37, 0, "must be 1 or more; got 0"), (0, 8, "holds no images")],
    )
    def test_there_must_be_a_step(self, count, batch_size, problem):
        with pytest.raises(UserError, match=problem):
            steps_per_epoch(numbered(count), batch_size)


class TestEvalBatches:
    @pytest.mark.parametrize("hosts", [1, 2])
    @pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1])
    def test_every_image_counts_once_and_in_order(self, count, hosts):
        parts = [
            take(
                eval_batches(
                    numbered(count),
                    PREPROCESSING,
                    batch_size=BATCH,
                    process_index=p,
                    process_count=hosts,
                ),
                None,
            )
            for p in range(hosts)
        ]
        seen = []
        for host_batches in zip(*parts, strict=True):  # strict: equal step counts
            for batch in host_batches:
                assert batch["image"].shape == (BATCH // hosts, 32, 32, 1)
                assert batch["label"].dtype == np.int32 and batch["mask"].dtype == np.bool_
                np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
                np.testing.assert_array_equal(batch["image"][~batch["mask"]], 0)
            row_labels = np.concatenate([batch["label"] for batch in host_batches])
            row_masks = np.concatenate([batch["mask"] for batch in host_batches])
            seen += row_labels[row_masks].tolist()
        assert seen == list(range(count))

    def test_an_empty_split_is_refused(self):
        with pytest.raises(UserError, match="no images"):
            eval_batches(numbered(0), PREPROCESSING, batch_size=BATCH)


def test_a_closed_iterator_says_so():
    batches = train_batches(numbered(SIZE), PREPROCESSING, "none", batch_size=BATCH, seed=0)
    next(batches)
    batches.close()
    with pytest.raises(UserError, match="closed"):
        next(batches)


def _shared_memory():
    """Shared-memory segments of this machine, where it shows them as files."""
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
