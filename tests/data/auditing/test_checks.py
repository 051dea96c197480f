import io
import logging
import os
import re

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from medmamba_jax.data import (
    DataConfig,
    Dataset,
    LabelledImages,
    audit,
    build_dataset,
)
from medmamba_jax.data.auditing.fingerprints import fact_of
from medmamba_jax.data.build import find, find_images, prepare
from medmamba_jax.data.config import CsvConfig
from medmamba_jax.errors import UserError

CLASSES = ("a", "b")


def smooth(count, seed, size=64):
    """Images without fine detail, as photographs are; no two are alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 6), np.uint8)
    resize = Image.Resampling.BICUBIC
    return np.stack([Image.fromarray(c).resize((size, size), resize) for c in coarse])


def dataset(splits, groups=None, labels=None, synthetic=False):
    return Dataset(
        {
            name: LabelledImages(
                images,
                np.arange(len(images)) % 2 if labels is None else labels[name],
                CLASSES,
                groups=None if groups is None else groups[name],
                names=tuple(f"{name}{i}.png" for i in range(len(images))),
                synthetic=synthetic,
            )
            for name, images in splits.items()
        }
    )


@pytest.fixture
def disjoint():
    return {name: list(smooth(6, seed)) for seed, name in enumerate(("train", "val", "test"))}


@pytest.fixture
def run(tmp_path, caplog):
    """Returns a function (data set, **settings) -> what was told; warnings are in caplog."""

    def run(data, channels=1, **settings):
        config = DataConfig(cache_dir=str(tmp_path / "cache"), image_size=32, **settings)
        told = []
        with caplog.at_level(logging.WARNING, logger="absl"):
            ready = prepare(find(config, data), config, config.preprocessing(channels))
            audit(
                ready.dataset,
                ready.images,
                ready.facts,
                ready.duplicates,
                config,
                made=ready.made,
                say=told.append,
            )
        return told

    return run


def test_what_is_in_order_is_told_once_and_warned_of_never(run, disjoint, caplog):
    for _ in range(2):
        assert run(dataset(disjoint)) == ["all 18 images can be read, 64x64 px"]
    assert not caplog.records


def test_a_patient_in_two_splits_stops_the_run(run, disjoint, caplog):
    ids = {"train": [f"p{i}" for i in range(6)], "val": ["p23"] * 6, "test": ["p7"] * 5 + ["p3"]}
    planted = dataset(disjoint, groups=ids)
    with pytest.raises(ValueError) as error:
        run(planted)
    message = str(error.value)
    assert "'p3' (train3.png in train and test5.png in test)" in message
    assert "p2" not in message and "data.allow_overlap=True" in message
    run(planted, allow_overlap=True)
    assert "'p3' (train3.png in train and test5.png in test)" in caplog.text


def test_an_image_in_two_splits_stops_the_run_whatever_its_file(run, disjoint, encode, caplog):
    png = encode(disjoint["train"][2])
    disjoint["test"][4] = encode(disjoint["train"][2], "BMP")
    disjoint["train"][2] = png
    planted = dataset(disjoint)
    wanted = "train2.png in train = test4.png in test"
    with pytest.raises(ValueError, match=rf"same pixels .* once: {wanted}\. .*allow_overlap=True"):
        run(planted)
    with pytest.raises(ValueError, match=wanted):  # what was kept says the same
        run(planted)
    told = run(planted, allow_overlap=True)
    assert wanted in caplog.text and told == ["all 18 images can be read, 64x64 px"]


def test_what_is_twice_in_one_split_is_only_warned_of(run, disjoint, caplog):
    disjoint["train"][5] = disjoint["train"][0]
    disjoint["test"][4] = disjoint["test"][2]
    run(dataset(disjoint))
    assert "train0.png in train = train5.png in train (labelled 'a', 'b')" in caplog.text
    assert "in one split again, 2 times" in caplog.text
    assert re.search(r"test2\.png in test = test4\.png in test(;|$)", caplog.text, re.MULTILINE)


def test_many_copies_are_counted_and_only_the_first_are_named(run, disjoint, caplog):
    disjoint["train"] = [disjoint["train"][0]] * 9 + [disjoint["train"][1]] * 3
    run(dataset(disjoint, labels={name: np.arange(len(i)) // 9 for name, i in disjoint.items()}))
    (text,) = [r.getMessage() for r in caplog.records if "split again" in r.getMessage()]
    first = " = ".join(f"train{i}.png in train" for i in range(5))
    second = " = ".join(f"train{i}.png in train" for i in range(9, 12))
    assert text.endswith(f"in one split again, 10 times: {first} = and 4 more; {second}")
    disjoint["test"][3] = disjoint["train"][0]
    wanted = "once: train0.png in train = test3.png in test = train1.png in train = "
    with pytest.raises(ValueError, match=wanted):
        run(dataset(disjoint))


@pytest.mark.parametrize("one_hot", [True, False])
def test_one_label_an_image_in_a_multi_label_set_is_told(run, disjoint, caplog, one_hot):
    labels = np.eye(2)[np.arange(6) % 2]
    if not one_hot:
        labels[3] = 1
    splits = {name: LabelledImages(images, labels) for name, images in disjoint.items()}
    run(Dataset(splits))
    assert ("every image shows exactly one class" in caplog.text) == one_hot
    assert ("data.csv.label_column" in caplog.text) == one_hot


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(io.BytesIO(buffer.getvalue()))


CHANGES = {
    "compressed": jpeg,
    "half the size": lambda image: image.resize((32, 32), Image.Resampling.BILINEAR),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "noisy": lambda image: Image.fromarray(
        np.clip(
            np.asarray(image, float) + np.random.default_rng(0).normal(0, 3, (64, 64)), 0, 255
        ).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nearly_the_same_image_in_two_splits_is_warned_of(run, disjoint, caplog, change):
    changed = CHANGES[change](Image.fromarray(disjoint["train"][1]))
    disjoint["val"][3] = np.asarray(changed)
    run(dataset(disjoint))
    assert "in two splits, once: train1.png in train ~ val3.png in val" in caplog.text


def test_the_hash_is_the_sign_of_the_slope():
    ramp = np.tile(np.arange(170, dtype=np.uint8), (160, 1))[..., None]
    facts = [fact_of(bytes(32), pixels) for pixels in (ramp, ramp[:, ::-1])]
    assert [np.bitwise_count(fact["dhash"]).sum() for fact in facts] == [256, 0]
    assert facts[0]["size"].tolist() == [170, 160]
    # A colour image counts as the mean of its channels, whatever their order.
    colour = np.concatenate([ramp, ramp[::-1], ramp[:, ::-1]], axis=2)
    one, other = (fact_of(bytes(32), c) for c in (colour, colour[..., ::-1]))
    assert (one["dhash"] == other["dhash"]).all() and (one["pixels"] != other["pixels"]).any()


def test_equal_pixels_with_different_labels_are_all_listed(run, caplog):
    images = list(smooth(18, 0))
    images[9:] = images[:9]
    labels = [0, 1] * 9
    labels[17] = labels[8]
    data = LabelledImages(images, labels, CLASSES)
    run(data)
    (text,) = [r.getMessage() for r in caplog.records if "different labels" in r.getMessage()]
    assert text.startswith("images with the same pixels have different labels, 8 times: ")
    assert all(f"image {i} in" in text for i in range(8)) and "image 17" not in text
    with pytest.raises(UserError, match=r"labels, 8 times: .*; and 3 more\. Correct the labels"):
        run(data, allow_contradictions=False)


def test_images_in_two_splits_are_only_warned_of_if_nothing_is_grouped(run, caplog):
    images = list(smooth(40, 0))
    images[20:] = images[:20]
    data = LabelledImages(images, np.arange(40) % 2, CLASSES)
    run(data, split_seed=1)
    assert "in more than one split" not in caplog.text
    run(data, split_seed=1, group_similar="off")
    assert "the same pixels are in more than one split" in caplog.text
    # Splits that the program does not make are another matter.
    parts = {"train": data.take(np.arange(20)), "val": data.take(np.arange(20, 40))}
    with pytest.raises(UserError, match="in more than one split, 20 times"):
        run(parts, group_similar="off")


def test_patients_rule_over_equal_images(run, caplog):
    """Images 20 to 39 are 0 to 19 again, of other patients: splits by patient divide them."""
    images = list(smooth(40, 0))
    images[20:] = images[:20]
    groups = [f"p{i // 2}" for i in range(40)]
    data = LabelledImages(images, np.arange(40) % 2, CLASSES, groups=groups)
    told = run(data)
    assert told == ["all 40 images can be read, 64x64 px"]
    assert "the same pixels are in more than one split" in caplog.text
    assert "belong to different patients (groups), 20 times" in caplog.text
    # Splits that the program does not make are another matter, and so is a test set that it keeps.
    parts = {"train": data.take(np.arange(20)), "test": data.take(np.arange(20, 40))}
    with pytest.raises(UserError, match="in more than one split, 20 times"):
        run(parts)


@pytest.mark.slow
def test_real_chest_x_rays_of_other_patients_are_not_taken_for_one(real_data, tmp_path, caplog):
    table = str(real_data / "cxr_kermany_224" / "split.csv")
    config = DataConfig(path=table, cache_dir=str(tmp_path), cache="none")
    ready = prepare(find(config), config, config.preprocessing(1))
    assert not len(ready.duplicates.near) and not ready.facts.problems
    assert (ready.facts.of["size"] == 224).all()


def test_the_official_split_of_real_chest_x_rays_shares_patients(run, real_data, caplog):
    table = str(real_data / "cxr_kermany_224" / "split.csv")
    official = build_dataset(DataConfig(path=table))
    with pytest.raises(ValueError, match=r"224 of the patients .*'N0439' \(train/NORMAL/IM-0439"):
        run(official)
    ours = build_dataset(DataConfig(path=table, csv=CsvConfig(split_column="")))
    groups = [set(split.groups) for split in ours.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 2169
    assert [len(split) for split in ours.splits.values()] == [1768, 295, 885]


def test_damaged_images_are_listed_and_looked_at_again(run, disjoint, encode):
    for i in range(6):
        disjoint["train"][i] = encode(disjoint["train"][i])[:-60]
    disjoint["val"][0] = b""
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            run(dataset(disjoint))
        message = str(error.value)
        assert message.startswith("7 of 18 images cannot be read: train0.png (not a complete")
        assert message.count(".png (") == 5 and "; and 2 more." in message


def test_what_was_dropped_is_not_said_to_be_readable(run, disjoint, encode, tmp_path):
    for i in range(18):
        image = disjoint[("train", "val", "test")[i // 6]][i % 6]
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image) if i else b"no image")
    data = find(DataConfig(path=str(tmp_path / "images")))
    told = run(data, allow_unreadable=True)
    assert told[-1] == "the other 17 images can be read, 64x64 px"


def test_classes_that_a_split_lacks(run, disjoint, caplog):
    labels = {"train": [0, 1, 0, 1, 0, 1], "val": [1] * 6, "test": [0, 0, 0, 0, 0, 1]}
    run(dataset(disjoint, labels=labels))
    assert "no image of val shows 'a'" in caplog.text and "test" not in caplog.text
    empty = {**disjoint, "test": []}
    with pytest.raises(ValueError, match="no images are in test: add some"):
        run(dataset(empty, labels={**labels, "test": np.zeros(0, int)}))
    labels["train"] = [0] * 6
    with pytest.raises(ValueError, match="train has images of one class only"):
        run(dataset(disjoint, labels=labels))


def test_sizes_that_differ_are_told(run, disjoint):
    disjoint["test"][0] = smooth(1, 8, size=40)[0]
    disjoint["test"][1] = np.tile(smooth(1, 9, size=50)[0], (1, 3))
    told = run(dataset(disjoint))
    assert told[-1] == "all 18 images can be read, of 3 sizes from 40x40 to 150x50 px"


def test_synthetic_images_are_not_looked_at(run, disjoint):
    disjoint["test"][0] = disjoint["train"][0]
    assert run(dataset(disjoint, synthetic=True)) == []


def test_the_audit_can_be_turned_off(run, disjoint, caplog):
    disjoint["test"][0] = disjoint["train"][0]
    disjoint["val"][0] = b"no image"
    groups = {name: ["p"] * 6 for name in disjoint}
    with pytest.raises(ValueError, match=r"patients \(groups\) are in more than one split"):
        run(dataset(disjoint, groups))
    (line,) = run(dataset(disjoint, groups), audit=False)
    assert line.startswith("data.audit is False: nothing was checked for damaged images")
    assert not caplog.text
    with pytest.raises(ValueError, match="no images are in test"):
        run(dataset({**disjoint, "test": []}), audit=False)


@pytest.fixture
def folder(tmp_path, disjoint, encode):
    for part, images in disjoint.items():
        for i, image in enumerate(images):
            path = tmp_path / "images" / part / CLASSES[i % 2] / f"{i}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image, "BMP"))
    return tmp_path / "images"


@pytest.mark.parametrize("time", [2e9, 1e9])  # a copy may be older than what it replaces
def test_a_file_that_is_replaced_is_looked_at_again(run, folder, tmp_path, time):
    """Its name and size are as before, as they are of all BMP files here."""
    data = find_images(DataConfig(path=str(folder)))
    run(data), run(data)
    planted = folder / "test" / "a" / "0.bmp"
    planted.write_bytes((folder / "train" / "b" / "3.bmp").read_bytes())
    os.utime(planted, (time, time))
    with pytest.raises(ValueError, match=re.escape("train/b/3.bmp in train = test/a/0.bmp")):
        run(data)


def test_a_cache_that_cannot_be_written_is_only_warned_of(disjoint, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    config = DataConfig(cache_dir=str(tmp_path / "file"))
    prepare(dataset(disjoint), config, config.preprocessing(1))
    assert "could not be written" in caplog.text
