"""The table of sources."""

import copy
import io

import numpy as np
import pytest

from medmamba_jax.data import (
    SOURCES,
    DataConfig,
    LabelledImages,
    Source,
    build_dataset,
)
from medmamba_jax.data.build import prepare, source_of
from medmamba_jax.data.config import CsvConfig, PhantomConfig, PublicConfig
from medmamba_jax.errors import UserError


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (DataConfig(path="x.csv"), "csv"),
        (DataConfig(path="x.TSV"), "csv"),
        (DataConfig(path="x.npz"), "npz"),
        (DataConfig(path="x.folder"), "folder"),
        (DataConfig(path="a.csv"), "folder"),
        (DataConfig(name="phantom"), "phantom"),
        (DataConfig(name="kvasir"), "public"),
    ],
)
def test_what_the_configuration_points_at(tmp_path, monkeypatch, config, name):
    (tmp_path / "x.folder").mkdir()
    (tmp_path / "a.csv").mkdir()  # a folder, whatever its ending
    monkeypatch.chdir(tmp_path)
    assert source_of(config) == name


def test_dicom_files_with_and_without_a_window_are_told(tmp_path, caplog):
    pytest.importorskip("pydicom")
    from pydicom.examples import ct  # 128x128, 16 bits, without a window

    def files(number_with_a_window):
        for i in range(30):
            header, content = copy.deepcopy(ct), io.BytesIO()
            header.PixelData = np.random.default_rng(i).bytes(len(ct.PixelData))
            if i < number_with_a_window:
                header.WindowCenter, header.WindowWidth = 40, 400
            header.save_as(content)
            yield content.getvalue()

    for number, window in ((0, "auto"), (30, "auto"), (7, "-160,240"), (7, "auto")):
        assert "grey DICOM files" not in caplog.text
        images = LabelledImages(list(files(number)), np.arange(30) % 2, ("a", "b"))
        config = DataConfig(cache_dir=str(tmp_path), image_size=32, window=window)
        prepare(images, config, config.preprocessing(1))
    assert "23 of 30 grey DICOM files have no window" in caplog.text
    assert "set data.window=LOW,HIGH" in caplog.text


def test_a_users_script_adds_a_source(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    with path.open("wb") as file:  # what is in the file is the script's affair
        np.save(file, images)
    config = DataConfig(path=str(path))
    with pytest.raises(UserError, match=r"no source recognises the file .*x\.h5"):
        build_dataset(config)

    def find_h5(config):
        pixels = np.load(config.path)
        labels = np.arange(len(pixels)) % 2
        return LabelledImages(pixels, labels, ("even", "odd"))

    def is_h5(config):
        return config.path.endswith(".h5")

    monkeypatch.setitem(SOURCES, "h5", Source("an HDF5 file (.h5)", is_h5, find_h5))
    dataset = build_dataset(config)
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 24,
        "val": 4,
        "test": 12,
    }
    found = {
        split.read(i).tobytes(): split.labels[i]
        for split in dataset.splits.values()
        for i in range(len(split))
    }
    assert found == {image.tobytes(): i % 2 for i, image in enumerate(images)}
    # Every message and check about sources reads the table.
    (tmp_path / "x.pdf").write_bytes(b"")
    with pytest.raises(UserError, match=r"The sources are: an HDF5 file \(\.h5\)"):
        build_dataset(DataConfig(path=str(tmp_path / "x.pdf")))
    with pytest.raises(UserError, match=r"data\.phantom\.images is 60, .* 'h5' \(an HDF5 file"):
        build_dataset(DataConfig(path=str(path), phantom=PhantomConfig(images=60)))


def test_a_script_can_take_an_ending_over(monkeypatch):
    mine = Source("my tables", lambda config: config.path.endswith(".csv"), lambda config: None)
    monkeypatch.setitem(SOURCES, "mine", mine)
    assert source_of(DataConfig(path="x.csv")) == "mine"


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"csv": CsvConfig(group_column="")}, r"data\.csv\.group_column is ''"),
        ({"public": PublicConfig(splits="official")}, r"data\.public\.splits is 'official'"),
    ],
)
def test_a_setting_of_another_source_is_refused(section, problem):
    with pytest.raises(UserError, match=problem + ", but the images come from .* 'phantom'"):
        build_dataset(DataConfig(name="phantom", **section))
