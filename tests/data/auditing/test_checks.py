import io
import json
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
    Preprocessing,
    audit,
    build_dataset,
)
from medmamba_jax.data.auditing.findings import Findings
from medmamba_jax.data.auditing.fingerprints import fingerprint, near_pairs
from medmamba_jax.data.config import CsvConfig

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
            audit(
                data,
                Preprocessing.from_config(config, channels),
                config,
                digests={name: split.digest() for name, split in data.splits.items()},
                say=told.append,
            )
        return told

    return run


def test_what_is_in_order_is_told_once_and_warned_of_never(run, disjoint, caplog):
    assert run(dataset(disjoint)) == [
        "checking 18 images for damage and overlap ...",
        "all 18 images can be read, 64x64 px",
    ]
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


@pytest.mark.parametrize("one_hot", [True, False])
def test_one_label_an_image_in_a_multi_label_set_is_told(run, disjoint, caplog, one_hot):
    labels = np.eye(2)[np.arange(6) % 2]
    if not one_hot:
        labels[3] = 1
    splits = {name: LabelledImages(images, labels) for name, images in disjoint.items()}
    run(Dataset(splits))
    assert ("every image shows exactly one class" in caplog.text) == one_hot


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


def test_near_pairs_are_those_that_a_slow_search_finds():
    images = smooth(40, 0)
    noise = np.random.default_rng(1).normal(0, 6, images.shape)
    noisy = np.clip(images + noise, 0, 255).astype(np.uint8)[::-1]
    mixed = np.concatenate([noisy[:25], smooth(300, 5)])

    def of(pixels):
        return fingerprint(LabelledImages(pixels, np.zeros(len(pixels), int)), np.atleast_3d)

    one, other = of(images), of(mixed)
    wanted = []
    for i in range(len(images)):
        for j in range(len(mixed)):
            bits = sum(
                bin(int(x) ^ int(y)).count("1")
                for x, y in zip(one.dhashes[i], other.dhashes[j], strict=True)
            )
            if bits <= 10 and np.corrcoef(one.thumbnails[i], other.thumbnails[j])[0, 1] >= 0.98:
                wanted.append([i, j])
    found = near_pairs(one, other)
    assert 10 < len(wanted) and found.tolist() == wanted
    assert all(i + j == 39 for i, j in wanted)


def test_the_hash_is_the_sign_of_the_slope():
    ramp = np.tile(np.arange(170, dtype=np.uint8), (160, 1))
    prints = fingerprint(LabelledImages([ramp, ramp[:, ::-1]], [0, 1]), np.atleast_3d)
    assert np.bitwise_count(prints.dhashes).sum(1).tolist() == [256, 0]
    assert prints.sizes.tolist() == [[170, 160]] * 2


def test_real_chest_x_rays_of_other_patients_are_not_taken_for_one(real_data, tmp_path, caplog):
    table = real_data / "cxr_kermany_224" / "split.csv"
    source = build_dataset(DataConfig(path=str(table)))
    splits = {
        name: split.take(np.arange(0, len(split), 6)) for name, split in source.splits.items()
    }
    preprocessing = Preprocessing.from_config(DataConfig(), 1)
    findings = Findings.of(splits, preprocessing.decode)
    assert not findings.near and not findings.unreadable
    assert findings.sizes == [(224, 224, sum(map(len, splits.values())))]


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


def build(folder):
    return build_dataset(DataConfig(path=str(folder)))


@pytest.mark.parametrize("time", [2e9, 1e9])  # a copy may be older than what it replaces
def test_a_file_that_is_replaced_is_looked_at_again(run, folder, tmp_path, time):
    """Its name and size are as before, as they are of all BMP files here."""
    assert len(run(build(folder))) == 2 and len(run(build(folder))) == 1
    planted = folder / "test" / "a" / "0.bmp"
    planted.write_bytes((folder / "train" / "b" / "3.bmp").read_bytes())
    os.utime(planted, (time, time))
    with pytest.raises(ValueError, match=re.escape("train/b/3.bmp in train = test/a/0.bmp")):
        run(build(folder))


@pytest.mark.parametrize("content", ["", '{"key": ', "{}", "[1]", None])
def test_what_was_kept_is_trusted_only_whole(run, folder, tmp_path, content):
    run(build(folder))
    (kept,) = (tmp_path / "cache" / "audit").iterdir()
    text = kept.read_text()
    other_key = text.replace('"key": "', '"key": "0')
    kept.write_text(other_key if content is None else content)
    assert len(run(build(folder))) == 2
    assert json.loads(kept.read_text()) == json.loads(text)


def test_a_cache_that_cannot_be_written_is_only_warned_of(disjoint, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    config = DataConfig(cache_dir=str(tmp_path / "file"))
    data = dataset(disjoint)
    digests = {name: split.digest() for name, split in data.splits.items()}
    told = []
    preprocessing = Preprocessing.from_config(config, 1)
    audit(data, preprocessing, config, digests=digests, say=told.append)
    assert "could not be written" in caplog.text and "can be read" in told[-1]
