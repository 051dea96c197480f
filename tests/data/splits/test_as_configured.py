import csv
import dataclasses
import hashlib
import io
import itertools

import numpy as np
import pytest

from medmamba_jax.data import DataConfig, Dataset, LabelledImages, build_dataset, write_split_table
from medmamba_jax.data.build import prepare
from medmamba_jax.data.config import FolderConfig, PhantomConfig
from medmamba_jax.data.sources.class_names import in_natural_order
from medmamba_jax.data.sources.frames import all_frames
from medmamba_jax.data.splits.split_table import trained_on


@pytest.fixture
def folder(tmp_path, noise_png):
    """60 images of 20 patients, <root>/<class>/<patient>_<image>.png."""
    for i in range(60):
        path = tmp_path / "images" / "ab"[i // 3 % 2] / f"p{i // 3}_{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise_png(i))
    return tmp_path / "images"


PATIENTS = FolderConfig(group_pattern=r"(p[0-9]+)_")


def build(path, **settings):
    return build_dataset(DataConfig(path=str(path), **settings))


def names(dataset):
    return {
        part: [split.names[i] for i in range(len(split))] for part, split in dataset.splits.items()
    }


def test_a_pattern_tells_the_patients_of_a_folder(folder):
    dataset = build(folder, folder=FolderConfig(r"/(p[0-9]+)_"))
    for split in dataset.splits.values():
        for row in range(len(split)):
            assert split.names[row].split("/")[1].split("_")[0] == split.groups[row]
    groups = [set(split.groups) for split in dataset.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    assert dataset.counts()["train"] == {"a": 18, "b": 18}


def test_folds_test_every_image_once_and_keep_patients_together(folder):
    rounds = [build(folder, folder=PATIENTS, fold=f"{fold}/5") for fold in range(1, 6)]
    tested = [name for dataset in rounds for name in names(dataset)["test"]]
    assert len(tested) == len(set(tested)) == 60
    for dataset in rounds:
        assert [len(split) for split in dataset.splits.values()] == [42, 6, 12]
        groups = [set(split.groups) for split in dataset.splits.values()]
        assert sum(map(len, groups)) == 20
    assert "fold 2/5 by 20 patients (groups), seed 0" in rounds[1].description


def test_folds_set_split_folders_aside(folder, caplog):
    (folder / "train").mkdir()
    for name in "ab":
        (folder / name).rename(folder / "train" / name)
    for name in "ab":
        path = folder / "test" / name / "more.png"
        path.parent.mkdir(parents=True)
        path.write_bytes((folder / "train" / name).iterdir().__next__().read_bytes())
    dataset = build(folder, fold="1/2")
    assert sum(map(len, dataset.splits.values())) == 62
    assert "the splits that images brings are not used" in caplog.text


def test_a_split_that_was_written_is_read(folder, tmp_path):
    first = build(folder, split_seed=5, folder=PATIENTS)
    path = tmp_path / "split.csv"
    write_split_table(path, first)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 60 and list(rows[0]) == ["path", "split", "label", "group", "content"]
    for row in rows:
        assert row["path"].startswith(f"{row['label']}/{row['group']}_")
        assert row["path"] in names(first)[row["split"]]
    digests = {name: split.digest() for name, split in first.splits.items()}
    moved = folder.rename(folder.with_name("moved"))
    second = build(moved, split_seed=6, split_file=str(path))
    assert names(second) == names(first)
    assert {name: split.digest() for name, split in second.splits.items()} == digests


@pytest.mark.parametrize("spelling", ["Train,VALID", "train,validation"])
def test_a_table_of_ones_own_may_be_without_test(folder, tmp_path, spelling):
    train, val = spelling.split(",")
    path = tmp_path / "split.csv"
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*.png"))]
    rows = [f"{name},{val if i % 3 == 0 else train}" for i, name in enumerate(files)]
    path.write_text("\n".join(["path,split", *rows]))
    dataset = build(folder, split_file=str(path))
    assert names(dataset) == {
        "train": [name for i, name in enumerate(files) if i % 3],
        "val": files[::3],
    }
    write_split_table(tmp_path / "again.csv", dataset)
    assert names(build(folder, split_file=str(tmp_path / "again.csv"))) == names(dataset)


def test_labels_of_a_multi_label_set_are_written_by_name(tmp_path):
    labels = [[1, 1], [0, -1], [0, 1]]
    split = LabelledImages([bytes([i]) for i in range(3)], labels, ("x", "y"))
    write_split_table(tmp_path / "split.csv", Dataset({"train": split}))
    content = [hashlib.sha256(bytes([i])).hexdigest()[:32] for i in range(3)]
    assert (tmp_path / "split.csv").read_text().splitlines() == [
        "path,split,label,group,content",
        f"image 0,train,x|y,,{content[0]}",
        f"image 1,train,,,{content[1]}",
        f"image 2,train,y,,{content[2]}",
    ]


def test_training_images_are_found_by_content(tmp_path):
    def of(*contents):
        return LabelledImages([bytes([c]) for c in contents], np.arange(len(contents)) % 2)

    path = tmp_path / "split.csv"
    write_split_table(path, Dataset({"train": of(1, 2, 3), "val": of(4, 5)}))
    assert trained_on(path, {"a": of(5, 3, 6, 1), "b": of(4)}) == {"a": [1, 3], "b": []}
    path.write_text("path,split\na,train\nb,val\n")  # of an earlier version
    assert trained_on(path, {"test": of(1, 2)}) == {"test": []}


def test_every_frame_of_a_training_file_is_found_whatever_the_window(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pages = np.random.default_rng(0).integers(0, 4096, (2, 3, 8, 8), np.uint16)
    files = []
    for stack in pages:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, stack, photometric="minisblack")
        files.append(buffer.getvalue())
    two = LabelledImages(files, [0, 1])
    path = tmp_path / "split.csv"
    write_split_table(path, Dataset({"train": all_frames(two.take(np.array([1])))}))
    found = trained_on(path, {"frames": all_frames(two, (0.0, 9.0)), "files": two})
    assert found == {"frames": [3, 4, 5], "files": [1]}


def test_phantoms_can_be_cross_validated():
    config = {"name": "phantom", "phantom": PhantomConfig(images=60), "split_seed": 3}
    tested = set()
    for fold in (1, 2, 3):
        dataset = build_dataset(DataConfig(fold=f"{fold}/3", **config))
        tested |= set(names(dataset)["test"])
    assert len(tested) == 60


def test_numbers_in_names_are_sorted_by_value():
    names = ["b", "10", "a10", "2", "a2", "B", "a", "01", "1", "stage 1b", "stage 1a"]
    assert in_natural_order(names) == (
        *("01", "1", "2", "10", "B", "a", "a2", "a10", "b", "stage 1a", "stage 1b"),
    )


class TestSimilarImages:
    """Fifty images, each of which has a copy with the same pixels under another name."""

    @pytest.fixture
    def doubled(self):
        pixels = np.random.default_rng(0).integers(0, 256, (50, 24, 24), np.uint8)
        return LabelledImages(np.concatenate([pixels, pixels]), np.arange(100) % 2, ("a", "b"))

    @staticmethod
    def parts(dataset):
        """Image of the first fifty -> the splits that hold it or its copy."""
        found = {}
        for name, split in dataset.splits.items():
            for image in split.names:
                found.setdefault(int(image.split()[1]) % 50, set()).add(name)
        return found

    @pytest.mark.parametrize("which", ["near", "identical"])
    @pytest.mark.parametrize("fold", ["", "1/5", "5/5"])
    def test_copies_stay_in_one_split(self, doubled, which, fold):
        dataset = build_dataset(DataConfig(group_similar=which, fold=fold), doubled)
        assert all(len(splits) == 1 for splits in self.parts(dataset).values())
        assert sum(map(len, dataset.splits.values())) == 100
        assert "with similar images together" in dataset.description

    def test_every_image_is_tested_once_in_five_folds(self, doubled):
        tested = []
        for fold in range(1, 6):
            tested += build_dataset(DataConfig(fold=f"{fold}/5"), doubled).splits["test"].names
        assert sorted(tested) == sorted(doubled.names)

    def test_off_and_unaudited_sets_are_split_by_image(self, doubled):
        for settings in ({"group_similar": "off"}, {"audit": False}):
            dataset = build_dataset(DataConfig(**settings), doubled)
            assert max(map(len, self.parts(dataset).values())) > 1

    def test_sets_without_copies_are_split_as_without_the_search(self, doubled):
        single = doubled.take(np.arange(50))
        names = [
            {name: split.names for name, split in build_dataset(config, single).splits.items()}
            for config in (DataConfig(), DataConfig(group_similar="off"))
        ]
        assert names[0] == names[1]

    def test_a_class_of_equal_images_is_not_said_to_have_patients(self, doubled):
        pixels = np.array(doubled.images)
        pixels[1::2] = pixels[1]
        images = dataclasses.replace(doubled, images=pixels)
        with pytest.raises(ValueError) as error:
            build_dataset(DataConfig(), images)
        assert "class 'b' has 1 set of similar images, which leaves none for" in str(error.value)
        assert "set data.group_similar" in str(error.value) and "patient" not in str(error.value)
        with pytest.raises(ValueError, match="'b' has 1 set of similar images, too few for 5"):
            build_dataset(DataConfig(fold="1/5"), images)
        build_dataset(DataConfig(group_similar="off"), images)

    @pytest.mark.parametrize("fold", ["", "1/4"])
    @pytest.mark.parametrize("copies", [1, 40])
    def test_splits_far_from_their_fractions_are_told(self, doubled, caplog, copies, fold):
        """In each class all but ten images may be the same."""
        pixels = np.random.default_rng(0).integers(0, 256, (100, 24, 24), np.uint8)
        pixels[: 2 * copies : 2], pixels[1 : 2 * copies : 2] = pixels[0], pixels[1]
        dataset = build_dataset(DataConfig(fold=fold), dataclasses.replace(doubled, images=pixels))
        test = 1 / 4 if fold else 0.3
        wanted = {"train": 0.9 - test, "val": 0.1, "test": test}
        texts = [f"{n} {len(s)}.0%, not {wanted[n]:.1%}" for n, s in dataset.splits.items()]
        far = any(
            not wanted[n] / 2 <= len(s) / 100 <= wanted[n] * 2 for n, s in dataset.splits.items()
        )
        assert far == ("far from the sizes" in caplog.text)
        assert far == (copies == 40) or fold
        if far:
            assert f"({', '.join(texts)})" in caplog.text
            assert "up to 40 of 100 of one set of similar images" in caplog.text

    def test_patients_rule_and_a_conflict_is_named(self, doubled, caplog):
        groups = [f"p{i // 4}" for i in range(100)]
        named = dataclasses.replace(doubled, groups=groups)
        ready = prepare(named, DataConfig(), DataConfig().preprocessing(1))
        for one, other in itertools.combinations(ready.dataset.splits.values(), 2):
            assert not set(one.groups) & set(other.groups)
        assert "belong to different patients (groups), 50 times" in caplog.text
        assert "image 0 of 'p0' and image 50 of 'p12'" in caplog.text
