import dataclasses
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import DataConfig, LabelledImages, build_dataset, write_split_table
from medmamba_jax.data.build import find_images
from medmamba_jax.data.sources.frames import all_frames
from medmamba_jax.data.splits.as_configured import split_as_configured, with_split_file


def tiff(*values, dtype=np.uint8):
    pages = [Image.fromarray(np.array([[value, 0]], dtype)) for value in values]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def test_each_frame_is_an_image_with_its_file_s_label_and_group():
    array = np.array([[40, 0]], np.uint8)
    images = [tiff(10, 11, 12), array, tiff(20, 21)]
    files = LabelledImages(images, [1, 0, 2], groups=["p", "q", "p"])
    frames = all_frames(files)
    assert len(frames) == 6
    assert [frames.read(i)[0, 0] for i in range(6)] == [10, 11, 12, 40, 20, 21]
    np.testing.assert_array_equal(frames.labels, [1, 1, 1, 0, 2, 2])
    np.testing.assert_array_equal(frames.groups, ["p", "p", "p", "q", "p", "p"])
    assert frames.weights is None
    assert frames.describe(5) == "image 2, frame 1"


def test_each_frame_has_its_file_s_weight():
    files = LabelledImages([tiff(10, 11), tiff(20)], [1, 0], weights=[3, 0.5])
    np.testing.assert_array_equal(all_frames(files).weights, [3, 3, 0.5])


def test_a_frame_is_named_without_the_folder_that_all_lie_in(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.tif").write_bytes(tiff(1, 2))
    config = DataConfig(path=str(tmp_path))
    frames = all_frames(find_images(config))
    assert frames.names[:3] == ("a/0.tif, frame 0", "a/0.tif, frame 1", "a/1.tif, frame 0")
    assert frames.describe(1) == f"{tmp_path}/a/0.tif, frame 1"
    assert all_frames(LabelledImages([tiff(1, 2)], [0])).names[1] == "image 0, frame 1"


class Counting:
    """Counts how often each file is read."""

    def __init__(self, files):
        self.files = files
        self.reads = np.zeros(len(files), int)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, place):
        self.reads[place] += 1
        return self.files[place]


def test_in_order_a_file_is_read_once_and_not_for_every_frame():
    files = Counting([tiff(*range(30)), tiff(*range(20))])
    frames = all_frames(LabelledImages(files, [0, 1]))
    files.reads[:] = 0
    assert [frames.read(i)[0, 0] for i in range(50)] == [*range(30), *range(20)]
    assert files.reads.tolist() == [1, 1]


def test_threads_and_processes_may_share_it():
    files = LabelledImages([tiff(*range(30)), tiff(*range(20))], [0, 1])
    frames = all_frames(files)
    expected = [*range(30), *range(20)] * 8
    order = np.random.default_rng(0).permutation(len(expected))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: frames.read(int(i) % 50)[0, 0], order))
    assert found == [expected[i] for i in order]
    size = len(pickle.dumps(all_frames(files)))
    assert len(pickle.dumps(frames)) == size  # without the file that was read last
    assert pickle.loads(pickle.dumps(frames)).read(49)[0, 0] == 19


def test_all_frames_of_a_file_are_in_its_split(tmp_path):
    frames = all_frames(LabelledImages([tiff(i, i) for i in range(30)], np.arange(30) % 2))
    dataset = split_as_configured(frames, DataConfig())
    assert dataset.splits["test"].files.tolist()[::2] == dataset.splits["test"].files.tolist()[1::2]
    # Files are split as they would be without further frames.
    files = LabelledImages([tiff(i) for i in range(30)], np.arange(30) % 2)
    for name, split in split_as_configured(files, DataConfig()).splits.items():
        assert dataset.splits[name].files.tolist()[::2] == list(split.names)
    write_split_table(tmp_path / "split.csv", dataset)
    config = DataConfig(split_file=str(tmp_path / "split.csv"))
    assert len((tmp_path / "split.csv").read_text().splitlines()) == 31
    again = split_as_configured(with_split_file(frames, config), config)
    assert again.splits["val"].names == dataset.splits["val"].names


def test_the_window_is_that_of_the_settings():
    frames = all_frames(LabelledImages([tiff(100, 150, 300, dtype=np.uint16)], [0]), (100.0, 200.0))
    assert [frames.read(i)[0, 0] for i in range(3)] == [0, 128, 255]


def test_the_digest_tells_files_and_windows_apart():
    def digest(*files, window="auto"):
        return all_frames(LabelledImages(list(files), [0] * len(files)), window).digest()

    first = digest(tiff(1, 2), tiff(3))
    assert first == digest(tiff(1, 2), tiff(3))
    assert first != digest(tiff(1), tiff(2, 3))
    assert first != digest(tiff(1, 2), tiff(3), window=(0.0, 9.0))


def test_a_file_that_cannot_be_counted_is_named():
    with pytest.raises(ValueError, match=r"^image 1: not an image file"):
        all_frames(LabelledImages([tiff(1), b"nothing"], [0, 0]))


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
