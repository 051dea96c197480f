"""FETAL_PLANES_DB from an archive of the published layout."""

import importlib.util
import pathlib

import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax.data.public.catalogue import CATALOGUE

CONFIG = pathlib.Path(__file__).parents[3] / "configs" / "fetal_planes_db.py"

NAME = "fetal_planes_db"
CLASSES = CATALOGUE[NAME].class_names
PATIENTS = 60  # of 3 images each; the last third is for testing


@pytest.fixture
def rows():
    return [
        {
            "Image_name": f"Patient{patient:05d}_Plane_{i}",
            "Patient_num": str(patient),
            "Plane": CLASSES[(patient + i) % len(CLASSES)],
            "Brain_plane": "Not A Brain",
            "Operator": "Op. 1",
            "US_Machine": "Voluson E6",
            "Train ": "1" if patient < 40 else "0",
        }
        for patient in range(PATIENTS)
        for i in range(3)
    ]


@pytest.fixture
def images(rows, noise_png):
    return {f"{row['Image_name']}.png": noise_png(i) for i, row in enumerate(rows)}


def archive(zipped, rows, images):
    """The headers end in blanks, as those that are published do."""
    lines = [";".join(rows[0]), *(";".join(row.values()) for row in rows)]
    files = {f"Images/{name}": content for name, content in images.items()}
    return zipped(
        {
            "FETAL_PLANES_DB_data.csv": "\r\n".join(lines).encode(),
            "FETAL_PLANES_DB_data.xlsx": b"",
            "README.md": b"",
        }
        | files
    )


def patients(dataset):
    return {name: set(split.groups) for name, split in dataset.splits.items()}


def test_the_official_split_with_val_by_patient(publish, build, rows, images, zipped):
    publish(NAME, archive(zipped, rows, images))
    dataset = build(NAME, splits="official")
    assert dataset.class_names == CLASSES
    by_content = {images[f"{row['Image_name']}.png"]: row for row in rows}
    for name, split in dataset.splits.items():
        for i, group in enumerate(split.groups):
            row = by_content[split.read(i)]
            assert dataset.class_names[split.labels[i]] == row["Plane"]
            assert group == row["Patient_num"]
            assert (row["Train "] == "0") == (name == "test")
    groups = patients(dataset)
    assert groups["test"] == {str(patient) for patient in range(40, 60)}
    assert not groups["train"] & groups["val"]
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    assert sizes["test"] == 60 and sum(sizes.values()) == len(rows)
    assert sizes["val"] / 120 == pytest.approx(1237 / (1237 + 7446), abs=0.03)


def test_one_preparation_serves_all_splits(server, publish, build, rows, images, zipped, contents):
    publish(NAME, archive(zipped, rows, images))
    datasets = {kind: build(NAME, splits=kind) for kind in ("paper", "official", "patient")}
    assert len(server.asked_for) == 1
    everything = None
    for dataset in datasets.values():
        splits = contents(dataset)
        merged = splits["train"] | splits["val"] | splits["test"]
        assert len(merged) == len(rows) and everything in (None, merged)
        everything = merged
    digests = {kind: dataset.splits["test"].digest() for kind, dataset in datasets.items()}
    assert len(set(digests.values())) == 3
    assert build(NAME, splits="patient").splits["test"].digest() == digests["patient"]
    assert build(NAME, splits="patient", split_seed=1).splits["test"].digest() != digests["patient"]
    by_patient = patients(datasets["patient"])
    assert not by_patient["train"] & by_patient["test"]
    assert not by_patient["train"] & by_patient["val"]
    assert not by_patient["val"] & by_patient["test"]
    sizes = [len(datasets["paper"].splits[name]) for name in ("train", "val", "test")]
    np.testing.assert_array_equal(sizes, np.round(180 / 12400 * np.array([7446, 1237, 3717])))


@pytest.mark.parametrize("value", ["2", "", "yes"])
def test_a_bad_train_column(publish, build, rows, images, zipped, value):
    rows[4]["Train "] = value
    publish(NAME, archive(zipped, rows, images))
    with pytest.raises(
        ValueError, match=rf"data\.csv, line 6: .* Train holds '{value}', not 0 or 1"
    ):
        build(NAME)


def test_no_test_images(publish, build, rows, images, zipped):
    for row in rows:
        row["Train "] = "1"
    publish(NAME, archive(zipped, rows, images))
    with pytest.raises(ValueError, match="published split has no test images"):
        build(NAME, splits="official")


def test_the_config_starts_to_train_on_the_papers_split(
    tmp_path, publish, rows, images, zipped, caplog
):
    """Its patients are in several parts, of which others are protected by the audit."""
    publish(NAME, archive(zipped, rows, images))
    spec = importlib.util.spec_from_file_location("config", CONFIG)
    config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(config)
    settings = config.get_config("testing")
    settings.data.public.data_dir = settings.data.cache_dir = str(tmp_path)
    settings.model.variant = "tiny"
    with mm.start_run(settings, tmp_path / "run") as run:
        assert run.dataset.name == NAME
    assert "patients (groups) are in more than one split" in caplog.text
    assert "Results on such a split are too good" in caplog.text
