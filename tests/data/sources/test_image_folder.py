import io
import logging
import pathlib
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import DataConfig, build_dataset


@pytest.fixture
def make_folder(tmp_path, noise_png):
    """Returns a function ({folder: number of images}) -> root with those PNG files."""

    def make_folder(counts):
        seed = 0
        for folder, count in counts.items():
            (tmp_path / folder).mkdir(parents=True)
            for i in range(count):
                (tmp_path / folder / f"{i:02}.png").write_bytes(noise_png(seed))
                seed += 1
        return tmp_path

    return make_folder


def build(root, **fields):
    return build_dataset(DataConfig(path=str(root), **fields))


def contents(dataset):
    """The images of each split: their number is that of the files, their bytes are unique."""
    return {
        name: {split.read(i) for i in range(len(split))} for name, split in dataset.splits.items()
    }


def test_two_folders_however_capitalised(make_folder):
    dataset = build(make_folder({"Train/a": 3, "Train/b": 2, "VAL/a": 1, "VAL/b": 1}))
    assert dataset.counts() == {"train": {"a": 3, "b": 2}, "val": {"a": 1, "b": 1}}


def test_folders_beside_those_of_splits_are_told(make_folder, caplog):
    split = {f"{name}/{label}": 2 for name in ("train", "val") for label in "ab"}
    build(make_folder({**split, "validation2/a": 1}))
    assert "left out the folders validation2 of" in caplog.text


@pytest.mark.parametrize("val_name", ["val", "validation", "valid"])
def test_three_folders_are_the_three_splits(make_folder, val_name):
    root = make_folder(
        {"train/b": 3, "train/a": 2, "train/c": 1, f"{val_name}/a": 1, "test/c": 2, "test/a": 1}
    )
    dataset = build(root)
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.counts() == {
        "train": {"a": 2, "b": 3, "c": 1},
        "val": {"a": 1, "b": 0, "c": 0},
        "test": {"a": 1, "b": 0, "c": 2},
    }
    assert not dataset.synthetic
    for split, folder in (("train", "train"), ("val", val_name), ("test", "test")):
        for i in range(len(dataset.splits[split])):
            images = dataset.splits[split]
            files = (root / folder / images.label_name(i)).iterdir()
            assert images.read(i) in [path.read_bytes() for path in files]
            assert images.describe(i) == str(root / images.names[i])


def test_classes_are_sorted_as_text_but_numbers_by_value(make_folder):
    root = make_folder({f"{s}/{c}": 1 for s in ("train", "val", "test") for c in ("10", "9", "B")})
    assert build(root).class_names == ("9", "10", "B")


def test_class_folders_are_split_by_seed_in_proportion(make_folder):
    root = make_folder({"a": 40, "b": 20})
    dataset = build(root, val_fraction=0.1, test_fraction=0.3)
    assert dataset.counts() == {
        "train": {"a": 24, "b": 12},
        "val": {"a": 4, "b": 2},
        "test": {"a": 12, "b": 6},
    }
    splits = contents(dataset)
    assert len(splits["train"] | splits["val"] | splits["test"]) == 60
    assert contents(build(root)) == splits
    assert contents(build(root, split_seed=1)) != splits


def test_missing_val_is_split_off_train_alone(make_folder, caplog):
    root = make_folder({"train/a": 20, "train/b": 10, "test/a": 5, "test/b": 5})
    with caplog.at_level(logging.INFO, logger="absl"):
        dataset = build(root, val_fraction=0.15)
    assert dataset.counts() == {
        "train": {"a": 16, "b": 8},
        "val": {"a": 4, "b": 2},
        "test": {"a": 5, "b": 5},
    }
    in_train_folder = {path.read_bytes() for path in root.glob("train/*/*")}
    splits = contents(dataset)
    assert splits["train"] | splits["val"] == in_train_folder
    assert "no val images: split 6 of 30 train images off" in caplog.text
    assert "val split off train by image, seed 0" in dataset.description


def test_other_files_are_skipped_and_counted(make_folder, noise_png, encode, caplog):
    root = make_folder({"a": 10, "b": 9})
    (root / "b" / "scan.JPG").write_bytes(encode(np.full((9, 9), 120, np.uint8), "JPEG"))
    (root / "a" / ".hidden.png").write_bytes(b"")
    (root / "a" / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    (root / "readme.md").write_text("no class")
    with caplog.at_level(logging.INFO, logger="absl"):
        dataset = build(root)
    assert sum(len(split) for split in dataset.splits.values()) == 20
    assert (
        f"{root}: skipped 4 entries that are no images: 2 hidden (.cache); 1 .txt (a/notes.txt);"
        in caplog.text
    )


@pytest.mark.parametrize("folder", ["__MACOSX", "__MACOSX/a", "a/@eaDir/00.png", "a/.thumbs"])
def test_folders_that_systems_add_hold_no_images(make_folder, folder):
    dataset = build(make_folder({"a": 10, "b": 10, folder: 3}))
    assert sum(map(len, dataset.splits.values())) == 20
    assert dataset.class_names == ("a", "b")


@pytest.mark.parametrize("table", [False, True])
def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(make_folder, table, caplog):
    root = make_folder({"a": 11, "b": 11})
    (root / "a" / "00.png").unlink()
    (root / "a" / "00.png").symlink_to("../../.git/annex/00.png")
    path = root
    if table:
        path = root / "my.csv"
        rows = [f"{file.relative_to(root)},{file.parent.name}" for file in root.glob("*/*.png")]
        path.write_text("\n".join(["path,label", *rows]))
    assert sum(map(len, build(path).splits.values())) == 22
    assert sum(map(len, build(path, allow_unreadable=True).splits.values())) == 21
    assert "a/00.png (the link leads to ../../.git/annex/00.png, which is not there" in caplog.text


def test_the_example_pattern_finds_the_patients_of_kermany(make_folder):
    """The names are those of the set that the example in docs/data.md is for."""
    text = (pathlib.Path(__file__).parents[3] / "docs" / "data.md").read_text()
    (pattern,) = re.findall(r"chest X-rays[^']*use\s`'([^']+)'`", text)
    names = {
        "NORMAL/IM-0115-0001.jpeg": "IM-0115",
        "NORMAL/NORMAL2-IM-1427-0001.jpeg": "NORMAL2-IM-1427",
        "NORMAL/NORMAL2-IM-0529-0001-0002.jpeg": "NORMAL2-IM-0529",
        "PNEUMONIA/person1_bacteria_2.jpeg": "person1",
        "PNEUMONIA/person1007_virus_1690.jpeg": "person1007",
    }
    assert {name: re.search(pattern, name)[1] for name in names} == names


def test_damaged_files_are_dropped_on_request(make_folder, noise_png, caplog):
    root = make_folder({"a": 11, "b": 11})
    damaged = {noise_png(99)[:-60], b""}
    for name, content in zip(("a/00.png", "b/05.png"), sorted(damaged), strict=True):
        (root / name).write_bytes(content)
    dataset = build(root, allow_unreadable=True)
    splits = contents(dataset)
    assert sum(map(len, splits.values())) == 20
    assert not damaged & set.union(*splits.values())
    assert "2 of 22 image files cannot be read" in caplog.text


def test_a_file_with_a_damaged_frame_is_dropped_where_all_are_read(tmp_path, noise_png):
    for i in range(40):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = [Image.open(io.BytesIO(noise_png(100 * i + frame))) for frame in range(3)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    damaged = tmp_path / "images" / "a" / "00.tif"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    settings = {"path": str(tmp_path / "images"), "allow_unreadable": True}
    for frame, count in ((0, 40), (2, 39), (-1, 3 * 39)):
        config = DataConfig(frame=frame, **settings)
        assert sum(map(len, build_dataset(config).splits.values())) == count


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        ({"only": 4}, "all are of the class 'only'"),
        ({"train/a": 2, "train/b": 2}, "none for val or test"),
        ({"test/a": 2, "test/b": 2}, "none for train"),
        ({"Val/a": 2, "Val/b": 2}, "the folder Val, but none for train"),
        (
            {"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1, "test/a": 1},
            "has both val and valid, which are val: keep one",
        ),
        (
            {"train/a": 2, "train/b": 2, "val/c": 1, "test/a": 1},
            "val has 1 images of class 'c', train has none",
        ),
        (
            {"train/a": 2, "train/b": 2, "val/a": 1, "test/c": 1},
            "test has 1 images of class 'c', train has none",
        ),
        ({"train/a": 2, "train/b": 2, "val/a": 0, "test/a": 1}, "no image files .*val"),
        ({}, "no image files"),
        ({"deeper/a": 1, "deeper/b": 2}, "in those of .*deeper: is that what data.path"),
        (
            {"a/p1": 1, "a/p2": 1, "b/p3": 1},
            r"level deeper, in a/p1 .*data\.path=TABLE\.csv",
        ),
        (
            {"a": 4, "b/p1": 2, "c": 3, "c/p1/s1": 1},
            r"3 images of .* not in the class folders, but a level deeper, in b/p1 .*TABLE\.csv",
        ),
        (
            {"train/a": 2, "train/b": 2, "test/a": 2, "test/b/p1": 3},
            "3 images of .*test are not in the class folders",
        ),
        ({"train": 3, "test": 2}, "3 directly in it: give each class a folder in it$"),
        ({"a": 30, "b": 1}, r"cannot split 9 images off 31 for test.*\[30, 1\]"),
    ],
)
def test_folders_that_are_no_data_set(make_folder, folders, problem):
    with pytest.raises(ValueError, match=problem):
        build(make_folder(folders))


def test_a_root_that_is_one_class_is_told_of_its_parent(make_folder):
    root = make_folder({"a": 3, "b": 3})
    with pytest.raises(ValueError, match=rf"3 directly in it: give .* set data.path to {root}$"):
        build(root / "a")


def test_the_root_must_be_set_and_exist(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path and data\.name are unset"):
        build("")
    with pytest.raises(FileNotFoundError, match=r"nowhere: set data\.path"):
        build(tmp_path / "nowhere")


def add(root):
    (root / "a" / "new.png").write_bytes((root / "a" / "00.png").read_bytes())


def exchange(root):
    """Two files of one class trade names: the names and the labels stay."""
    first, second = root / "a" / "00.png", root / "a" / "01.png"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two), second.write_bytes(one)


def digests(root):
    return {name: split.digest() for name, split in build(root).splits.items()}


@pytest.mark.parametrize("change", [add, exchange])
def test_digests_follow_the_files_wherever_the_root_is(make_folder, change):
    root = make_folder({"a": 20, "b": 20})
    with (root / "a" / "01.png").open("ab") as file:
        file.write(b"trailing")  # noise compresses to equal sizes, photographs do not
    before = digests(root)
    root = root.rename(root.with_name(f"{root.name}_moved"))
    assert digests(root) == before and len(set(before.values())) == 3
    change(root)
    assert digests(root) != before


def test_a_class_is_one_however_its_accents_are_stored(make_folder):
    one = "m\u00e9lanome"
    other = unicodedata.normalize("NFD", one)
    counts = {f"{split}/a": 2 for split in ("train", "val")}
    root = make_folder({**counts, f"train/{one}": 2, f"val/{other}": 3})
    assert build(root).counts()["val"] == {"a": 2, one: 3}
    (root / "train" / other).mkdir()
    with pytest.raises(ValueError, match=f"two folders '{one}', whose accents"):
        build(root)
