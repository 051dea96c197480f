"""The CPN builder against small archives of the published layout, from a server and by hand."""

import dataclasses
import errno
import io
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import Preprocessing, eval_batches
from medmamba_jax.data.public import tfds_sets
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.public.facts import Archive
from medmamba_jax.errors import DataUnavailableError

NAME = "cpn_xray"
SIZES = {"COVID": 20, "NORMAL": 22, "PNEUMONIA": 24}
ARCHIVE = "dvntn9yhd2-1.zip"


@pytest.fixture
def images(noise_png):
    """File name inside the inner archive -> bytes."""
    names = [f"{label}/{i}.png" for label, size in SIZES.items() for i in range(size)]
    return {name: noise_png(seed) for seed, name in enumerate(names)}


def inner_zip(zipped, images, parent=""):
    folders = {f"{parent}{label}/": b"" for label in SIZES}
    others = {"__MACOSX/COVID/._0.png": b"not an image", "readme.txt": b"no image"}
    return zipped(folders | {parent + name: png for name, png in images.items()} | others)


def outer_zip(zipped, inner):
    return zipped({"dvntn9yhd2-1/Chest X-Ray Images Dataset.zip": inner}, zipfile.ZIP_DEFLATED)


@pytest.fixture
def archive(zipped):
    """Returns a function (images) -> bytes of the published archive."""
    return lambda images: outer_zip(zipped, inner_zip(zipped, images))


@pytest.fixture
def assert_complete(contents):
    """Returns a function (data set, images)."""

    def assert_complete(dataset, images):
        assert dataset.class_names == tuple(SIZES) and not dataset.synthetic
        splits = contents(dataset)
        # 66 images times 1567/5228 and 521/5228.
        sizes = {name: len(split) for name, split in splits.items()}
        assert sizes == {"train": 39, "val": 7, "test": 20}
        merged = splits["train"] | splits["val"] | splits["test"]
        assert merged == {content: name.split("/")[0] for name, content in images.items()}
        for name, split in dataset.splits.items():
            labels = [split.labels[i] for i in range(len(split))]
            np.testing.assert_array_equal(split.labels, labels)
            assert split.groups is None
            for label, size in SIZES.items():
                share = dataset.counts()[name][label] / size
                assert share == pytest.approx(len(split) / 66, abs=1 / size)

    return assert_complete


class TestDownload:
    def test_a_zip_in_a_zip(
        self, server, publish, build, images, archive, assert_complete, contents, caplog
    ):
        publish(NAME, archive(images))
        dataset = build(NAME)
        assert_complete(dataset, images)
        assert "Licence: not known. Cite: S. Kumar" in caplog.text
        assert (
            "cpn_xray, images: {'COVID': 20, 'NORMAL': 22, 'PNEUMONIA': 24} here, but"
            in caplog.text
        )
        assert "cpn_xray, splits: {'train': 39, 'val': 7, 'test': 20} here, but" in caplog.text
        # The prepared files are used from now on, and nobody is asked to agree again.
        server.files.clear()
        caplog.clear()
        assert contents(build(NAME)) == contents(dataset)
        assert "Licence" not in caplog.text

    @pytest.mark.parametrize("failure", ["missing", "outer cut off", "inner cut off", "no server"])
    def test_a_failure_names_the_remedies_and_a_second_try_works(
        self, publish, build, images, archive, zipped, failure, assert_complete, monkeypatch
    ):
        whole = archive(images)
        publish(NAME, whole)
        if failure == "missing":
            publish(NAME, None)
        elif failure == "outer cut off":
            publish(NAME, whole[:-200])
        elif failure == "inner cut off":
            publish(NAME, outer_zip(zipped, inner_zip(zipped, images)[:-200]))
        else:
            nobody = Archive(f"http://127.0.0.1:9/{ARCHIVE}")
            without_server = dataclasses.replace(CATALOGUE[NAME], archive=nobody)
            monkeypatch.setitem(CATALOGUE, NAME, without_server)
        with pytest.raises(DataUnavailableError) as error:
            build(NAME)
        message = str(error.value)
        assert CATALOGUE[NAME].archive.url in message
        assert CATALOGUE[NAME].page in message
        assert "data.public.manual_dir" in message
        assert "`medmamba train`" in message
        assert "\n" not in message

        publish(NAME, whole)
        assert_complete(build(NAME), images)

    def test_a_connection_that_breaks_off(
        self, server, publish, build, images, archive, assert_complete
    ):
        whole = archive(images)
        publish(NAME, whole)
        server.break_after = len(whole) // 2
        with pytest.raises(DataUnavailableError, match=r"could not be downloaded .it broke off"):
            build(NAME)
        server.break_after = None
        assert_complete(build(NAME), images)
        assert server.asked_for == [None, f"bytes={len(whole) // 2}-"]

    def test_a_bit_error_inside_an_image(self, publish, build, images, zipped, assert_complete):
        inner = bytearray(inner_zip(zipped, images))
        at = inner.find(images["NORMAL/5.png"]) + 60
        inner[at] ^= 0xFF
        publish(NAME, outer_zip(zipped, bytes(inner)))
        with pytest.raises(DataUnavailableError, match=r"damaged .*Bad CRC-32.*NORMAL/5\.png"):
            build(NAME)
        publish(NAME, outer_zip(zipped, inner_zip(zipped, images)))
        assert_complete(build(NAME), images)

    @pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_damage_of_other_compressions(
        self, publish, build, images, zipped, assert_complete, compression
    ):
        whole = zipped(images, compression)
        at = whole.find(b"COVID/0.png") + len("COVID/0.png") + 30
        publish(NAME, whole[:at] + bytes(20) + whole[at + 20 :])
        with pytest.raises(DataUnavailableError, match="damaged"):
            build(NAME)
        publish(NAME, whole)
        assert_complete(build(NAME), images)

    def test_a_place_before_the_archive(self, publish, build, images, zipped, assert_complete):
        whole = zipped(images)
        damaged = bytearray(whole)
        place_of_the_directory = damaged.rfind(b"PK\x05\x06") + 16
        struct.pack_into("<I", damaged, place_of_the_directory, 2**31)  # all is before byte 0 then
        publish(NAME, bytes(damaged))
        with pytest.raises(DataUnavailableError, match="damaged"):
            build(NAME)
        publish(NAME, whole)
        assert_complete(build(NAME), images)

    def test_an_error_of_the_disk_is_not_called_damage(
        self, server, publish, build, images, archive, monkeypatch
    ):
        publish(NAME, archive(images))

        def broken(*_, **__):
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
            patch.setattr("medmamba_jax.data.public.layouts.open_files", broken)
            build(NAME)
        build(NAME)
        assert len(server.asked_for) == 1

    def test_another_process_is_faster(
        self, publish, build, images, archive, assert_complete, monkeypatch
    ):
        publish(NAME, archive(images))

        def late(*arguments, **options):
            monkeypatch.setattr(tfds_sets, "obtained", obtained)
            assert_complete(build(NAME), images)
            return obtained(*arguments, **options)

        obtained = tfds_sets.obtained
        monkeypatch.setattr(tfds_sets, "obtained", late)
        assert_complete(build(NAME), images)

    def test_a_path_outside_of_the_archive(self, publish, build, images, archive):
        publish(NAME, archive(images | {"../NORMAL/9.png": images["NORMAL/9.png"]}))
        with pytest.raises(
            ValueError, match=r"cannot be used: .* path outside of its folder, .*\.\./"
        ):
            build(NAME)

    def test_another_folder_is_left_out(
        self, publish, build, images, archive, assert_complete, noise_png, caplog
    ):
        publish(NAME, archive(images | {"TUBERCULOSIS/0.png": noise_png(99)}))
        assert_complete(build(NAME), images)
        assert "left 1 images out" in caplog.text and "TUBERCULOSIS/0.png" in caplog.text

    def test_no_tensorflow(self, tmp_path, images, archive):
        (tmp_path / ARCHIVE).write_bytes(archive(images))
        program = f"""
import sys
from medmamba_jax.data import DataConfig, build_dataset
from medmamba_jax.data.config import PublicConfig
build_dataset(DataConfig(name="phantom"))
assert "tensorflow_datasets" not in sys.modules
dataset = build_dataset(
    DataConfig(
        name="cpn_xray",
        public=PublicConfig(data_dir={str(tmp_path / "tfds")!r}, manual_dir={str(tmp_path)!r}),
    )
)
assert len(dataset.splits["train"].read(0)) > 0
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
        subprocess.run(
            [sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)}
        )


class TestManualFiles:
    @pytest.mark.parametrize("parent", ["", "Data/CPN/"])
    @pytest.mark.parametrize("form", ["outer", "inner", "folder"])
    def test_every_form_gives_the_same_splits(
        self, tmp_path, build, images, form, parent, zipped, assert_complete, contents
    ):
        manual = tmp_path / "manual"
        manual.mkdir()
        inner = inner_zip(zipped, images, parent)
        if form == "outer":
            (manual / ARCHIVE).write_bytes(outer_zip(zipped, inner))
        elif form == "inner":
            (manual / "dvntn9yhd2-1").mkdir()
            (manual / "dvntn9yhd2-1" / "Chest X-Ray.ZIP").write_bytes(inner)
        else:
            zipfile.ZipFile(io.BytesIO(inner)).extractall(manual / "extracted")
        dataset = build(NAME, manual_dir=str(manual))
        assert_complete(dataset, images)
        # The split is a function of the file names below the class folders.
        reference = tmp_path / "reference"
        reference.mkdir()
        (reference / "inner.zip").write_bytes(inner_zip(zipped, images))
        other = build(NAME, root="tfds2", manual_dir=str(reference))
        assert contents(other) == contents(dataset)

    @pytest.mark.parametrize("deleted", ["COVID", "NORMAL"])
    @pytest.mark.parametrize("in_archive", [True, False])
    def test_a_class_without_images(
        self, tmp_path, build, images, deleted, in_archive, zipped, archive
    ):
        kept = {name: png for name, png in images.items() if not name.startswith(deleted)}
        manual = tmp_path / "manual"
        if in_archive:
            manual.mkdir()
            (manual / ARCHIVE).write_bytes(archive(kept))
        else:
            zipfile.ZipFile(io.BytesIO(inner_zip(zipped, kept))).extractall(manual)
        with pytest.raises(ValueError, match=f"in a folder {deleted}: .* missing or empty"):
            build(NAME, manual_dir=str(manual))

    def test_a_cut_off_archive_is_left_alone(self, tmp_path, build, images, archive):
        cut_off = tmp_path / ARCHIVE
        cut_off.write_bytes(archive(images)[:-200])
        with pytest.raises(ValueError, match=f"{ARCHIVE} is damaged"):
            build(NAME, manual_dir=str(tmp_path))
        assert cut_off.exists()

    def test_an_unreadable_image_is_named(self, tmp_path, build, images, zipped):
        images["NORMAL/3.png"] = images["NORMAL/3.png"][:60]
        (tmp_path / "inner.zip").write_bytes(inner_zip(zipped, images))
        with pytest.raises(ValueError, match=r"NORMAL/3\.png: not a complete image file"):
            build(NAME, manual_dir=str(tmp_path))

    def test_class_folders_in_two_places(self, tmp_path, build, images, zipped):
        for place in ("a", "b"):
            zipfile.ZipFile(io.BytesIO(inner_zip(zipped, images))).extractall(tmp_path / place)
        with pytest.raises(ValueError, match=r"several places \['a', 'b'\]"):
            build(NAME, manual_dir=str(tmp_path))

    def test_two_archives_under_other_names(self, tmp_path, build, images, archive):
        for name in ("a.zip", "b.zip"):
            (tmp_path / name).write_bytes(archive(images))
        with pytest.raises(ValueError, match=r"several places \['a.zip/.*, 'b.zip/.*: keep one"):
            build(NAME, manual_dir=str(tmp_path))

    def test_the_archive_among_those_of_other_sets(
        self, tmp_path, build, images, archive, assert_complete
    ):
        (tmp_path / ARCHIVE).write_bytes(archive(images))
        (tmp_path / "other.zip").write_bytes(b"damaged")
        assert_complete(build(NAME, manual_dir=str(tmp_path)), images)

    def test_an_empty_directory_or_none(self, tmp_path, build):
        manual = tmp_path / "manual"
        with pytest.raises(
            FileNotFoundError, match=rf"set data\.public\.manual_dir .* {ARCHIVE} from http"
        ):
            build(NAME, manual_dir=str(manual))
        manual.mkdir()
        with pytest.raises(ValueError, match=r"manual cannot be used: no PNG .* published at http"):
            build(NAME, manual_dir=str(manual))


@pytest.mark.slow
def test_splits_are_read_by_workers(tmp_path, build, images, zipped):
    (tmp_path / "inner.zip").write_bytes(inner_zip(zipped, images))
    split = build(NAME, manual_dir=str(tmp_path)).splits["test"]
    by_content = {content: name for name, content in images.items()}
    assert split.describe(3) == f"{by_content[split.read(3)]} of cpn_xray"
    copied = pickle.loads(pickle.dumps(split))
    assert copied.read(3) == split.read(3)
    step = Preprocessing((32, 32), 1, "nearest", (0.5,), (0.5,))
    with eval_batches(split, step, batch_size=20, num_workers=1) as batches:
        (batch,) = batches
    np.testing.assert_array_equal(batch["label"], split.labels)
    opened = Image.open(io.BytesIO(split.read(0))).resize((32, 32), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(batch["image"][0, ..., 0], np.asarray(opened))


def test_digests_identify_the_images(tmp_path, build, images, zipped):
    def digests(name, images):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "inner.zip").write_bytes(inner_zip(zipped, images))
        dataset = build(NAME, root=f"{name}/tfds", manual_dir=str(folder))
        return [split.digest() for split in dataset.splits.values()]

    first = digests("first", images)
    assert len(set(first)) == 3 and digests("first", images) == first
    assert digests("second", images) == first
    exchanged = {"NORMAL/3.png": images["NORMAL/4.png"], "NORMAL/4.png": images["NORMAL/3.png"]}
    assert digests("third", images | exchanged) != first
