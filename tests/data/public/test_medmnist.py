"""MedMNIST from small npz files of the published layout, and from two real ones."""

import hashlib
import io
import pathlib
import struct
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from medmamba_jax.data import Preprocessing, npz_file
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.errors import DataUnavailableError

REAL = pathlib.Path(__file__).parents[4] / "shared" / "data" / "medmnist"
SIZES = {"train": 11, "val": 5, "test": 7}


def arrays(shape, num_classes, label_shape=(1,)):
    rng = np.random.default_rng(0)
    made = {}
    for split, size in SIZES.items():
        made[f"{split}_images"] = rng.integers(0, 256, (size, *shape), np.uint8)
        labels = np.arange(size, dtype=np.uint8) % num_classes
        made[f"{split}_labels"] = labels.reshape(size, *label_shape)
    return made


@pytest.fixture
def gray():
    """BreastMNIST's arrays, but for their lengths."""
    return arrays((28, 28), 2)


def npz(arrays, save=np.savez_compressed):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def md5(content):
    return hashlib.md5(content).hexdigest()


def assert_same(dataset, arrays):
    """Every split has the array's images in its order, pixel for pixel."""
    assert {name: len(split) for name, split in dataset.splits.items()} == SIZES
    for name, split in dataset.splits.items():
        np.testing.assert_array_equal(split.labels, arrays[f"{name}_labels"].ravel())
        for i in range(len(split)):
            np.testing.assert_array_equal(split.read(i), arrays[f"{name}_images"][i], strict=True)
            assert split.describe(i).startswith(f"{name}_images[{i:06d}] of ")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("breastmnist", (28, 28)),
        ("pathmnist", (28, 28, 3)),
        ("organcmnist_64", (64, 64)),
        ("dermamnist_128", (128, 128, 3)),
        ("bloodmnist_224", (224, 224, 3)),
    ],
)
@pytest.mark.parametrize("kind", ["paper", "official"])
def test_a_download(publish, build, name, shape, kind):
    published = arrays(shape, len(CATALOGUE[name].class_names))
    publish(name, npz(published), md5=md5(npz(published)))
    dataset = build(name, splits=kind)
    assert dataset.name == name and dataset.class_names == CATALOGUE[name].class_names
    assert_same(dataset, published)


def prepared_as_png(name, arrays, data_dir, encode):
    """Writes a set as version 0.1.0 did: in TFDS version 2.0.0, as PNG files."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.0.0")

        def _info(self):
            texts = dict.fromkeys(("filename", "patient", "split"), tfds.features.Text())
            label = tfds.features.ClassLabel(names=CATALOGUE[name].class_names)
            image = tfds.features.Image(shape=(None, None, 3))
            features = tfds.features.FeaturesDict({"image": image, "label": label} | texts)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"images": self._generate_examples()}

        def _generate_examples(self):
            for split in SIZES:
                pairs = zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)
                for i, (image, label) in enumerate(pairs):
                    file = f"{split}_images[{i:06d}]"
                    texts = {"filename": file, "patient": "", "split": split}
                    yield file, {"image": encode(image), "label": label.item()} | texts

    Builder.name = name
    Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.mark.parametrize(("name", "shape"), [("breastmnist", (28, 28)), ("pathmnist", (28, 28, 3))])
def test_a_set_that_an_earlier_version_prepared_gives_the_same_pixels(
    server, publish, build, tmp_path, encode, name, shape
):
    published = arrays(shape, len(CATALOGUE[name].class_names))
    publish(name, npz(published), md5=md5(npz(published)))
    prepared_as_png(name, published, tmp_path / "before", encode)
    before = build(name, root="before")
    assert server.asked_for == []
    now = build(name)
    assert server.asked_for == [None]
    for channels in (1, 3):
        step = Preprocessing((32, 40), channels, "bilinear", (0.5,), (0.5,))
        for split in SIZES:
            old, new = before.splits[split], now.splits[split]
            assert old.names == new.names
            np.testing.assert_array_equal(old.labels, new.labels)
            for i in range(len(new)):
                file, array = old.read(i), new.read(i)
                np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), array)
                np.testing.assert_array_equal(step.decode(file), step.decode(array))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("label_shape", [(1,), ()])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_files_that_were_saved_again(tmp_path, build, save, label_shape, dtype):
    again = arrays((28, 28), 2, label_shape)
    again = {name: x.astype(dtype) if "labels" in name else x for name, x in again.items()}
    (tmp_path / "breastmnist.npz").write_bytes(npz(again, save))
    with pytest.raises(ValueError, match=r"breastmnist\.npz has the md5 .*accept_changed_files"):
        build("breastmnist", manual_dir=str(tmp_path))
    dataset = build("breastmnist", manual_dir=str(tmp_path), accept_changed_files=True)
    assert_same(dataset, again)
    # What was accepted once is not what is found by those who do not accept it.
    with pytest.raises(ValueError, match="has the md5"):
        build("breastmnist", manual_dir=str(tmp_path))


@pytest.mark.parametrize("changed", ["md5", "sha256", "size"])
def test_a_download_that_is_not_the_published_file(publish, build, gray, changed):
    content = npz(gray)
    right = {
        "md5": md5(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }
    wrong = {"md5": md5(b""), "sha256": hashlib.sha256(b"").hexdigest(), "size": 3}
    publish("breastmnist", content, **right | {changed: wrong[changed]})
    with pytest.raises(DataUnavailableError, match=f"the download .* not .*{wrong[changed]}"):
        build("breastmnist")
    publish("breastmnist", content, **right)
    assert_same(build("breastmnist"), gray)


def test_a_download_that_goes_on(server, publish, build, gray):
    content = npz(gray)
    publish("breastmnist", content, md5=md5(content))
    server.break_after = 4000
    with pytest.raises(DataUnavailableError, match="broke off after 4000 of"):
        build("breastmnist")
    server.break_after = None
    assert_same(build("breastmnist"), gray)
    assert server.asked_for == [None, "bytes=4000-"]


def changed(name, change):
    def edit(arrays):
        arrays[name] = change(arrays[name])

    return edit


def out_of_range(labels):
    labels = labels.copy()
    labels[3] = 2
    return labels


STRUCTURES = {
    "missing array": (lambda arrays: arrays.pop("val_labels"), "there is no array 'val_labels'"),
    "images of another size": (
        changed("train_images", lambda x: x[:, 1:]),
        r"train_images is uint8 \(11, 27, 28\), but should be uint8 \(11, 28, 28\)",
    ),
    "images as floats": (changed("val_images", np.float32), "val_images is float32"),
    "colour": (changed("val_images", lambda x: np.stack([x] * 3, -1)), r"\(5, 28, 28, 3\), but"),
    "an image fewer": (
        changed("test_images", lambda x: x[1:]),
        r"test_labels has the shape \(7, 1\), but test_images holds 6 images",
    ),
    "labels as floats": (changed("train_labels", np.float64), "train_labels is float64"),
    "one-hot labels": (changed("train_labels", lambda x: np.hstack([x, 1 - x])), r"\(11, 2\), but"),
    "label out of range": (
        changed("test_labels", out_of_range),
        r"test_labels\[3\] is 2, but there are 2 classes \(0\.\.1\)",
    ),
    "negative label": (
        changed("val_labels", lambda x: x.astype(int) - 1),
        r"val_labels\[0\] is -1",
    ),
    "Fortran order": (changed("train_images", np.asfortranarray), "Fortran order"),
    "pickled": (
        changed("val_labels", lambda x: x.astype(object)),
        "val_labels is pickled, .* code",
    ),
}


@pytest.mark.parametrize("mistake", STRUCTURES)
def test_a_wrong_structure_is_refused_even_if_changes_are_accepted(tmp_path, build, gray, mistake):
    edit, message = STRUCTURES[mistake]
    edit(gray)
    (tmp_path / "breastmnist.npz").write_bytes(npz(gray))
    with pytest.raises(ValueError, match=rf"breastmnist\.npz cannot be used: .*{message}"):
        build("breastmnist", manual_dir=str(tmp_path), accept_changed_files=True)


def test_a_pickle_is_not_opened(tmp_path, build, gray):
    class Bomb:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "exploded",))

    gray["train_images"] = np.array([Bomb()], dtype=object)
    (tmp_path / "breastmnist.npz").write_bytes(npz(gray))
    with pytest.raises(ValueError, match=r"train_images is pickled, .* save arrays of numbers"):
        build("breastmnist", manual_dir=str(tmp_path), accept_changed_files=True)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "val_labels",
            (10**13, 1),
            r"val_labels claims to be uint8 \(10000000000000, 1\), .* holds",
        ),
        (
            "test_images",
            (10**13, 28, 28),
            r"test_images claims to be uint8 \(10000000000000, 28, 28",
        ),
    ],
)
def test_what_claims_to_be_larger_than_it_is(tmp_path, build, gray, name, shape, message):
    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, claim)
    values = gray.pop(name).tobytes()
    file = tmp_path / "breastmnist.npz"
    file.write_bytes(npz(gray))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{name}.npy", header.getvalue() + values)
    with pytest.raises(ValueError, match=message):
        build("breastmnist", manual_dir=str(tmp_path), accept_changed_files=True)


def test_labels_that_could_not_be_loaded_are_not(tmp_path, build, gray, monkeypatch):
    monkeypatch.setattr(npz_file, "_LARGEST", 80)
    gray["train_labels"] = gray["train_labels"].astype(np.int64)
    (tmp_path / "breastmnist.npz").write_bytes(npz(gray))
    with pytest.raises(
        ValueError, match=r"train_labels is int64 \(11, 1\): it has 88 bytes, and 80"
    ):
        build("breastmnist", manual_dir=str(tmp_path), accept_changed_files=True)


def flipped(content):
    at = content.find(b"train_images.npy") + 2000
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-100], lambda content: b"x"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file(tmp_path, build, gray, damage, save):
    (tmp_path / "breastmnist.npz").write_bytes(damage(npz(gray, save)))
    with pytest.raises(ValueError, match=r"breastmnist\.npz is damaged"):
        build("breastmnist", manual_dir=str(tmp_path), accept_changed_files=True)


def test_a_folder_without_the_file(tmp_path, build):
    with pytest.raises(ValueError, match=r"it holds no file breastmnist_64\.npz"):
        build("breastmnist_64", manual_dir=str(tmp_path))


def test_an_encrypted_file(tmp_path, build, gray):
    content = bytearray(npz(gray))
    flags_of_the_directory = content.find(b"PK\x01\x02") + 8
    struct.pack_into("<H", content, flags_of_the_directory, 1)
    (tmp_path / "breastmnist.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"breastmnist\.npz cannot be used: .* is encrypted"):
        build("breastmnist", manual_dir=str(tmp_path), accept_changed_files=True)


@pytest.mark.parametrize("kind", ["paper", "official"])
def test_other_sizes_than_the_published_are_said(publish, build, gray, caplog, kind):
    publish("breastmnist", npz(gray), md5=md5(npz(gray)))
    build("breastmnist", splits=kind)
    assert "splits: {'train': 11, 'val': 5, 'test': 7} here, but {'train': 546," in caplog.text


@pytest.mark.parametrize("name", ["breastmnist", "pneumoniamnist"])
def test_real_images_in_files_that_were_saved_again(build, name, caplog):
    if not REAL.is_dir():
        pytest.skip(f"there is no {REAL} with real MedMNIST files")
    with pytest.raises(ValueError, match=rf"not {CATALOGUE[name].archive.md5} as published"):
        build(name, manual_dir=str(REAL))
    dataset = build(name, manual_dir=str(REAL), accept_changed_files=True)
    with np.load(REAL / f"{name}.npz", allow_pickle=False) as real:
        for split_name, split in dataset.splits.items():
            np.testing.assert_array_equal(split.labels, real[f"{split_name}_labels"].ravel())
            np.testing.assert_array_equal(split.read(3), real[f"{split_name}_images"][3])
    # Of PneumoniaMNIST eleven training images are missing there.
    assert ("4697" in caplog.text) == (name == "pneumoniamnist")
