"""Kvasir from an archive of the published layout."""

import numpy as np
import pytest

from medmamba_jax.data.public.catalogue import CATALOGUE

CLASSES = CATALOGUE["kvasir"].class_names
PER_CLASS = 10


@pytest.fixture
def images(encode):
    """File name inside the archive -> bytes of a JPEG."""
    rng = np.random.default_rng(0)
    names = [f"{label}/{i:02d}-af.jpg" for label in CLASSES for i in range(PER_CLASS)]
    return {
        name: encode(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), "JPEG") for name in names
    }


def archive(zipped, images):
    return zipped({f"kvasir-dataset/{name}": content for name, content in images.items()})


def test_a_download(publish, build, images, zipped, contents):
    publish("kvasir", archive(zipped, images))
    dataset = build("kvasir")
    assert dataset.class_names == CLASSES
    splits = contents(dataset)
    # The paper's 301, 49 and 150 of 500.
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 48,
        "val": 8,
        "test": 24,
    }
    assert all(set(counts.values()) <= {6, 1, 3} for counts in dataset.counts().values())
    merged = splits["train"] | splits["val"] | splits["test"]
    assert merged == {content: name.split("/")[0] for name, content in images.items()}


def test_what_is_left_of_a_download_is_said(publish, build, images, zipped, caplog, tmp_path):
    publish("kvasir", archive(zipped, images))
    build("kvasir")
    download = tmp_path / "tfds" / "downloads" / "kvasir" / "kvasir-dataset.zip"
    assert f"Nothing reads the download {download} any more: it may be deleted" in caplog.text
    download.unlink()
    caplog.clear()
    assert build("kvasir").counts()["train"]
    assert "download" not in caplog.text


def test_a_folder_that_is_not_read_again_is_named(build, images, zipped, caplog, tmp_path):
    (tmp_path / "kvasir.zip").write_bytes(archive(zipped, images))
    build("kvasir", manual_dir=str(tmp_path))
    assert "deleted" not in caplog.text and "not read again" not in caplog.text
    caplog.clear()
    build("kvasir", manual_dir=str(tmp_path))
    prepared = tmp_path / "tfds" / "kvasir" / "3.0.0"
    assert f"before, in {prepared}, and data.public.manual_dir is not read again" in caplog.text
    caplog.clear()
    build("kvasir")
    assert "not read again" not in caplog.text


def test_a_missing_class(publish, build, images, zipped):
    kept = {name: content for name, content in images.items() if not name.startswith("polyps")}
    publish("kvasir", archive(zipped, kept))
    with pytest.raises(ValueError, match=r"kvasir-dataset\.zip cannot be used: .* folder polyps"):
        build("kvasir")


def test_other_counts_than_the_published_are_said(publish, build, images, zipped, caplog):
    publish("kvasir", archive(zipped, images))
    build("kvasir")
    assert "kvasir, images: {'dyed-lifted-polyps': 10," in caplog.text
    assert "'dyed-lifted-polyps': 500," in caplog.text


@pytest.fixture
def second_version(images, zipped, tmp_path):
    """A folder with the archive of version 2: folders of the same names, 1,000 images each."""
    image = next(iter(images.values()))
    names = [f"kvasir-dataset-v2/{label}/{i}.jpg" for label in CLASSES for i in range(1000)]
    folder = tmp_path / "manual"
    folder.mkdir()
    (folder / "kvasir-dataset-v2.zip").write_bytes(zipped(dict.fromkeys(names, image)))
    return folder


@pytest.mark.parametrize("name", ["kvasir-dataset-v2.zip", "kvasir-dataset.zip"])
def test_the_second_version_is_refused(second_version, build, name, tmp_path):
    (second_version / "kvasir-dataset-v2.zip").rename(second_version / name)
    with pytest.raises(ValueError, match=r"cannot be used: .* version 2 .*: get .*-dataset\.zip"):
        build("kvasir", manual_dir=str(second_version))
    assert not (tmp_path / "tfds" / "kvasir" / "3.0.0").exists()


def test_the_second_version_can_be_accepted(second_version, build, images, zipped):
    dataset = build("kvasir", manual_dir=str(second_version), accept_changed_files=True)
    assert sum(map(len, dataset.splits.values())) == 8000
    # The first is not mistaken for it afterwards.
    (second_version / "kvasir-dataset.zip").write_bytes(archive(zipped, images))
    dataset = build("kvasir", manual_dir=str(second_version))
    assert sum(map(len, dataset.splits.values())) == PER_CLASS * len(CLASSES)


@pytest.mark.parametrize("kind", ["official", "patient"])
def test_splits_that_it_lacks(server, build, kind):
    with pytest.raises(ValueError, match=rf"kvasir has no splits '{kind}'; .* one of \('paper',\)"):
        build("kvasir", splits=kind)
    assert server.asked_for == []
