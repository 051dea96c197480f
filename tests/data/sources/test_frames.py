import dataclasses
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import DataConfig, InMemorySplit, build_dataset
from medmamba_jax.data.build import find_images
from medmamba_jax.data.naming import short_name
from medmamba_jax.data.sources.frames import AllFrames


def tiff(*values, dtype=np.uint8):
    pages = [Image.fromarray(np.array([[value, 0]], dtype)) for value in values]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def test_each_frame_is_an_image_with_its_file_s_label_and_group():
    array = np.array([[40, 0]], np.uint8)
    files = InMemorySplit([tiff(10, 11, 12), array, tiff(20, 21)], [1, 0, 2], ["p", "q", "p"])
    frames = AllFrames(files)
    assert len(frames) == 6
    assert [frames[i]["image"][0, 0] for i in range(6)] == [10, 11, 12, 40, 20, 21]
    assert [frames[i]["label"] for i in range(6)] == [1, 1, 1, 0, 2, 2]
    np.testing.assert_array_equal(frames.labels, [1, 1, 1, 0, 2, 2])
    np.testing.assert_array_equal(frames.groups, ["p", "p", "p", "q", "p", "p"])
    assert frames.weights is None
    assert frames.describe(5) == "image 2, frame 1"


def test_each_frame_has_its_file_s_weight():
    files = InMemorySplit([tiff(10, 11), tiff(20)], [1, 0], weights=[3, 0.5])
    np.testing.assert_array_equal(AllFrames(files).weights, [3, 3, 0.5])


def test_a_frame_is_named_without_the_folder_that_all_lie_in(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.tif").write_bytes(tiff(1, 2))
    config = DataConfig(path=str(tmp_path))
    files = find_images(config).images
    frames = AllFrames(files)
    assert short_name(frames, 1) == f"{short_name(files, 0)}, frame 1"
    assert str(tmp_path) not in short_name(frames, 1)
    assert short_name(AllFrames(InMemorySplit([tiff(1, 2)], [0])), 1) == "image 0, frame 1"


class Counting:
    """Counts how often each file is read."""

    def __init__(self, split):
        self.split, self.labels, self.groups = split, split.labels, split.groups
        self.weights = split.weights
        self.reads = np.zeros(len(split), int)

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.split[index]

    def describe(self, index):
        return self.split.describe(index)


def test_in_order_a_file_is_read_once_and_not_for_every_frame():
    files = Counting(InMemorySplit([tiff(*range(30)), tiff(*range(20))], [0, 1]))
    frames = AllFrames(files)
    files.reads[:] = 0
    assert [frames[i]["image"][0, 0] for i in range(50)] == [*range(30), *range(20)]
    assert files.reads.tolist() == [1, 1]


def test_threads_and_processes_may_share_it():
    frames = AllFrames(InMemorySplit([tiff(*range(30)), tiff(*range(20))], [0, 1]))
    expected = [*range(30), *range(20)] * 8
    order = np.random.default_rng(0).permutation(len(expected))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: frames[int(i) % 50]["image"][0, 0], order))
    assert found == [expected[i] for i in order]
    size = len(pickle.dumps(AllFrames(frames.files)))
    assert len(pickle.dumps(frames)) == size  # without the file that was read last
    assert pickle.loads(pickle.dumps(frames))[49]["image"][0, 0] == 19


def test_without_groups_the_frames_of_a_file_are_one():
    frames = AllFrames(InMemorySplit([tiff(1, 2), tiff(3)], [0, 1]))
    assert frames.groups[0] == frames.groups[1] != frames.groups[2]


def test_the_window_is_that_of_the_settings():
    frames = AllFrames(InMemorySplit([tiff(100, 150, 300, dtype=np.uint16)], [0]), (100.0, 200.0))
    assert [frames[i]["image"][0, 0] for i in range(3)] == [0, 128, 255]


def test_the_digest_tells_files_and_windows_apart():
    def digest(*files, window="auto"):
        return AllFrames(InMemorySplit(list(files), [0] * len(files)), window).digest()

    first = digest(tiff(1, 2), tiff(3))
    assert first == digest(tiff(1, 2), tiff(3))
    assert first != digest(tiff(1), tiff(2, 3))
    assert first != digest(tiff(1, 2), tiff(3), window=(0.0, 9.0))


def test_a_file_that_cannot_be_counted_is_named():
    with pytest.raises(ValueError, match=r"^image 1: not an image file"):
        AllFrames(InMemorySplit([tiff(1), b"nothing"], [0, 0]))


def test_the_configuration_asks_for_them(tmp_path):
    for split, names in (("train", "ab"), ("val", "cd"), ("test", "ef")):
        for label, name in enumerate(names):
            folder = tmp_path / split / str(label)
            folder.mkdir(parents=True)
            (folder / f"{name}.tif").write_bytes(tiff(*range(label + 2)))
    config = DataConfig(path=str(tmp_path))
    assert len(build_dataset(config).splits["train"]) == 2
    every = build_dataset(dataclasses.replace(config, frame=-1)).splits["train"]
    np.testing.assert_array_equal(every.labels, [0, 0, 1, 1, 1])
