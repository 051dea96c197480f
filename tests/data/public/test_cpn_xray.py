"""The CPN builder against small archives of the published layout, from a server and by hand."""

import functools
import http.server
import io
import pickle
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import (
    DataConfig,
    DataUnavailableError,
    Preprocessing,
    build_dataset,
    eval_batches,
)

SIZES = {"COVID": 20, "NORMAL": 22, "PNEUMONIA": 24}
ARCHIVE = "dvntn9yhd2-1.zip"


@pytest.fixture
def images(noise_png):
    """File name inside the inner archive -> bytes."""
    names = [f"{label}/{i}.png" for label, size in SIZES.items() for i in range(size)]
    return {name: noise_png(seed) for seed, name in enumerate(names)}


def inner_zip(images, parent=""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for label in SIZES:
            archive.mkdir(f"{parent}{label}")
        for name, content in images.items():
            archive.writestr(parent + name, content)
        archive.writestr("__MACOSX/COVID/._0.png", b"not an image")
        archive.writestr("readme.txt", b"no image")
    return buffer.getvalue()


def outer_zip(inner):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dvntn9yhd2-1/Chest X-Ray Images Dataset.zip", inner)
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the returned directory as the place the builder downloads from."""
    from medmamba_jax.data.public.cpn_xray import CpnXray

    directory = tmp_path / "server"
    directory.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=directory)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(CpnXray, "URL", f"http://127.0.0.1:{server.server_port}/{ARCHIVE}")
        yield directory
        server.shutdown()
        thread.join()


@pytest.fixture
def build(tmp_path):
    def build(**fields):
        return build_dataset(DataConfig(source="tfds", root=str(tmp_path / "tfds"), **fields))

    return build


def contents(dataset):
    """split -> {image bytes: class name}."""
    return {
        name: {split[i]["image"]: dataset.class_names[split[i]["label"]] for i in range(len(split))}
        for name, split in dataset.splits.items()
    }


def assert_complete(dataset, images):
    """Every image is in one split, under its class, byte for byte, in the published proportions."""
    assert dataset.class_names == tuple(SIZES) and not dataset.synthetic
    splits = contents(dataset)
    # 66 images times 1567/5228 and 521/5228.
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 39,
        "val": 7,
        "test": 20,
    }
    merged = splits["train"] | splits["val"] | splits["test"]
    assert merged == {content: name.split("/")[0] for name, content in images.items()}
    for name, split in dataset.splits.items():
        labels = [split[i]["label"] for i in range(len(split))]
        np.testing.assert_array_equal(split.labels, labels)
        for label, size in SIZES.items():
            share = dataset.counts()[name][label] / size
            assert share == pytest.approx(len(split) / 66, abs=1 / size)


class TestDownload:
    def test_a_zip_in_a_zip(self, server, build, images):
        (server / ARCHIVE).write_bytes(outer_zip(inner_zip(images)))
        dataset = build()
        assert_complete(dataset, images)
        # The prepared files are used from now on.
        (server / ARCHIVE).unlink()
        assert contents(build()) == contents(dataset)

    def test_the_size_of_the_published_split(self):
        from medmamba_jax.data.splitting import stratified_split

        labels = np.repeat([0, 1, 2], [1626, 1802, 1800])
        rows = stratified_split(labels, val_fraction=521 / 5228, test_fraction=1567 / 5228, seed=0)
        assert [len(rows[name]) for name in ("train", "val", "test")] == [3140, 521, 1567]
        np.testing.assert_array_equal(np.sort(np.concatenate(list(rows.values()))), range(5228))

    @pytest.mark.parametrize("failure", ["missing", "outer cut off", "inner cut off", "no server"])
    def test_a_failure_names_the_remedies_and_a_second_try_works(
        self, server, build, images, failure, monkeypatch
    ):
        from medmamba_jax.data.public.cpn_xray import CpnXray

        whole = outer_zip(inner_zip(images))
        url = CpnXray.URL
        if failure == "outer cut off":
            (server / ARCHIVE).write_bytes(whole[:-200])
        elif failure == "inner cut off":
            (server / ARCHIVE).write_bytes(outer_zip(inner_zip(images)[:-200]))
        elif failure == "no server":
            monkeypatch.setattr(CpnXray, "URL", f"http://127.0.0.1:9/{ARCHIVE}")
        with pytest.raises(DataUnavailableError) as error:
            build()
        message = str(error.value)
        assert CpnXray.URL in message
        assert CpnXray.PAGE in message
        assert "data.manual_dir" in message
        assert "`python main.py`" in message
        assert "\n" not in message

        monkeypatch.setattr(CpnXray, "URL", url)
        (server / ARCHIVE).write_bytes(whole)
        assert_complete(build(), images)

    def test_a_connection_that_breaks_off(self, server, build, images, monkeypatch):
        whole = outer_zip(inner_zip(images))
        (server / ARCHIVE).write_bytes(whole)
        copyfile = http.server.SimpleHTTPRequestHandler.copyfile
        monkeypatch.setattr(
            http.server.SimpleHTTPRequestHandler,
            "copyfile",
            lambda _, source, output: output.write(source.read(len(whole) // 2)),
        )
        with pytest.raises(DataUnavailableError, match="could not be downloaded"):
            build()
        monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "copyfile", copyfile)
        assert_complete(build(), images)

    def test_a_bit_error_inside_an_image(self, server, build, images):
        archive = bytearray(inner_zip(images))
        at = archive.find(images["NORMAL/5.png"]) + 60
        archive[at] ^= 0xFF
        (server / ARCHIVE).write_bytes(outer_zip(bytes(archive)))
        with pytest.raises(DataUnavailableError, match=r"damaged .*Bad CRC-32.*NORMAL/5\.png"):
            build()
        (server / ARCHIVE).write_bytes(outer_zip(inner_zip(images)))
        assert_complete(build(), images)

    def test_no_tensorflow(self, tmp_path, images):
        (tmp_path / ARCHIVE).write_bytes(outer_zip(inner_zip(images)))
        program = f"""
import sys
from medmamba_jax.data import DataConfig, build_dataset
build_dataset(DataConfig(source="phantom", phantom_images=30))
assert "tensorflow_datasets" not in sys.modules
dataset = build_dataset(
    DataConfig(source="tfds", root={str(tmp_path / "tfds")!r}, manual_dir={str(tmp_path)!r})
)
assert len(dataset.splits["train"][0]["image"]) > 0
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
        subprocess.run(
            [sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)}
        )


class TestManualFiles:
    @pytest.mark.parametrize("parent", ["", "Data/CPN/"])
    @pytest.mark.parametrize("form", ["outer", "inner", "folder"])
    def test_every_form_gives_the_same_splits(self, tmp_path, build, images, form, parent):
        manual = tmp_path / "manual"
        manual.mkdir()
        inner = inner_zip(images, parent)
        if form == "outer":
            (manual / ARCHIVE).write_bytes(outer_zip(inner))
        elif form == "inner":
            (manual / "dvntn9yhd2-1").mkdir()
            (manual / "dvntn9yhd2-1" / "Chest X-Ray.ZIP").write_bytes(inner)
        else:
            zipfile.ZipFile(io.BytesIO(inner)).extractall(manual / "extracted")
        dataset = build(manual_dir=str(manual))
        assert_complete(dataset, images)
        # The split is a function of the file names below the class folders.
        reference = tmp_path / "reference"
        reference.mkdir()
        (reference / "inner.zip").write_bytes(inner_zip(images))
        other = build_dataset(
            DataConfig(source="tfds", root=str(tmp_path / "tfds2"), manual_dir=str(reference))
        )
        assert contents(other) == contents(dataset)

    @pytest.mark.parametrize("deleted", ["COVID", "NORMAL"])
    @pytest.mark.parametrize("in_archive", [True, False])
    def test_a_class_without_images(self, tmp_path, build, images, deleted, in_archive):
        kept = {name: png for name, png in images.items() if not name.startswith(deleted)}
        manual = tmp_path / "manual"
        if in_archive:
            manual.mkdir()
            (manual / ARCHIVE).write_bytes(outer_zip(inner_zip(kept)))
        else:
            zipfile.ZipFile(io.BytesIO(inner_zip(kept))).extractall(manual)
        with pytest.raises(ValueError, match=f"in a folder {deleted}: .* missing or empty"):
            build(manual_dir=str(manual))

    def test_a_cut_off_archive_is_left_alone(self, tmp_path, build, images):
        archive = tmp_path / ARCHIVE
        archive.write_bytes(outer_zip(inner_zip(images))[:-200])
        with pytest.raises(ValueError, match=f"{ARCHIVE} is damaged"):
            build(manual_dir=str(tmp_path))
        assert archive.exists()

    def test_an_unreadable_image_is_named(self, tmp_path, build, images):
        images["NORMAL/3.png"] = images["NORMAL/3.png"][:60]
        (tmp_path / "inner.zip").write_bytes(inner_zip(images))
        with pytest.raises(ValueError, match=r"NORMAL/3\.png: not a complete image file"):
            build(manual_dir=str(tmp_path))

    def test_class_folders_in_two_places(self, tmp_path, build, images):
        for place in ("a", "b"):
            zipfile.ZipFile(io.BytesIO(inner_zip(images))).extractall(tmp_path / place)
        with pytest.raises(ValueError, match=r"several places \['a', 'b'\]"):
            build(manual_dir=str(tmp_path))

    def test_no_files_several_zips_or_no_directory(self, tmp_path, build):
        manual = tmp_path / "manual"
        with pytest.raises(FileNotFoundError, match=r"set data\.manual_dir"):
            build(manual_dir=str(manual))
        manual.mkdir()
        with pytest.raises(DataUnavailableError, match="neither class folders nor a zip"):
            build(manual_dir=str(manual))
        for name in ("a.zip", "b.zip"):
            (manual / name).write_bytes(outer_zip(b""))
        with pytest.raises(ValueError, match=r"several zips \['a.zip', 'b.zip'\]"):
            build(manual_dir=str(manual))


def test_splits_are_read_by_workers(tmp_path, build, images):
    (tmp_path / "inner.zip").write_bytes(inner_zip(images))
    split = build(manual_dir=str(tmp_path)).splits["test"]
    copied = pickle.loads(pickle.dumps(split))
    assert copied[3] == split[3]
    step = Preprocessing((32, 32), 1, "nearest", (0.5,), (0.5,))
    with eval_batches(split, step, batch_size=20, num_workers=1) as batches:
        (batch,) = batches
    np.testing.assert_array_equal(batch["label"], split.labels)
    opened = Image.open(io.BytesIO(split[0]["image"])).resize((32, 32), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(batch["image"][0, ..., 0], np.asarray(opened))


def test_digests_identify_the_images(tmp_path, images):
    def digests(name, images):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "inner.zip").write_bytes(inner_zip(images))
        config = DataConfig(source="tfds", root=str(folder / "tfds"), manual_dir=str(folder))
        return [split.digest() for split in build_dataset(config).splits.values()]

    first = digests("first", images)
    assert len(set(first)) == 3 and digests("first", images) == first
    assert digests("second", images) == first
    exchanged = {"NORMAL/3.png": images["NORMAL/4.png"], "NORMAL/4.png": images["NORMAL/3.png"]}
    assert digests("third", images | exchanged) != first


def test_unknown_names_are_refused(build):
    with pytest.raises(ValueError, match=r"data\.name must be one of \('cpn_xray',\).*'mnist'"):
        build(name="mnist")
