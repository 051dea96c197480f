"""PAD-UFES-20 from an archive of the published layout: a table, and three zips in the zip."""

import csv
import io
import zipfile

import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax.data import write_split_table
from medmamba_jax.data.public.catalogue import CATALOGUE

NAME = "pad_ufes_20"
CLASSES = CATALOGUE[NAME].class_names
COLUMNS = ("patient_id", "lesion_id", "smoke", "img_id", "region", "diagnostic", "biopsed")
PATIENTS = 45  # of 4 lesions each


@pytest.fixture
def rows():
    return [
        {
            "patient_id": f"PAT_{patient}",
            "lesion_id": str(4 * patient + lesion),
            "smoke": "",
            "img_id": f"PAT_{patient}_{lesion}.png",
            "region": '"ARM", "left"',
            "diagnostic": CLASSES[(patient + lesion) % len(CLASSES)],
            "biopsed": "True",
        }
        for patient in range(PATIENTS)
        for lesion in range(4)
    ]


@pytest.fixture
def images(rows, noise_png):
    return {row["img_id"]: noise_png(i) for i, row in enumerate(rows)}


def table(rows, columns=COLUMNS):
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def archive(zipped, table, images, compression=zipfile.ZIP_STORED):
    names = sorted(images)
    parts = {}
    for part in (1, 2, 3):
        files = {f"imgs_part_{part}/{name}": images[name] for name in names[part - 1 :: 3]}
        parts[f"images/imgs_part_{part}.zip"] = zipped(files, compression)
    return zipped({"metadata.csv": table} | parts, compression)


@pytest.mark.parametrize("kind", ["paper", "patient"])
def test_a_download(publish, build, rows, images, zipped, contents, kind):
    publish(NAME, archive(zipped, table(rows), images, zipfile.ZIP_DEFLATED))
    dataset = build(NAME, splits=kind)
    assert dataset.class_names == CLASSES
    splits = contents(dataset)
    merged = splits["train"] | splits["val"] | splits["test"]
    assert merged == {images[row["img_id"]]: row["diagnostic"] for row in rows}

    by_content = {images[row["img_id"]]: row for row in rows}
    groups = {}
    for name, split in dataset.splits.items():
        for i, group in enumerate(split.groups):
            row = by_content[split.read(i)]
            assert group == row["patient_id"]
            assert split.describe(i) == f"{row['img_id']} of pad_ufes_20"
        groups[name] = set(split.groups)
    shared = (groups["train"] | groups["val"]) & groups["test"] | groups["train"] & groups["val"]
    assert bool(shared) == (kind == "paper")
    shares = [len(split) / len(rows) for split in splits.values()]
    np.testing.assert_allclose(shares, [1384 / 2298, 227 / 2298, 687 / 2298], atol=0.03)


def test_patients_in_two_splits_stop_a_run_unless_that_is_allowed(
    tmp_path, publish, rows, images, zipped, caplog
):
    publish(NAME, archive(zipped, table(rows), images))
    config = mm.at_size(mm.default_config(), "testing")
    config.data.name, config.data.public.data_dir = NAME, str(tmp_path / "tfds")
    config.data.cache_dir = str(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"patients \(groups\) are in more than .* PAT_"):
        mm.start_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.data.allow_overlap = True  # as configs/pad_ufes_20.py does
    config.model.variant = "tiny"
    with mm.start_run(config, tmp_path / "run"):
        pass
    assert "patients (groups) are in more than one split" in caplog.text


def test_folds_keep_patients_together_and_can_be_written_and_read(
    tmp_path, publish, build, rows, images, zipped
):
    publish(NAME, archive(zipped, table(rows), images))
    tested = []
    for fold in (1, 2, 3):
        dataset = build(NAME, fold=f"{fold}/3")
        groups = [set(split.groups) for split in dataset.splits.values()]
        assert sum(map(len, groups)) == len(set.union(*groups)) == PATIENTS
        test = dataset.splits["test"]
        tested += [test.names[i] for i in range(len(test))]
    assert sorted(tested) == sorted(images)
    write_split_table(tmp_path / "split.csv", dataset)
    again = build(NAME, split_file=str(tmp_path / "split.csv"))
    assert {name: split.digest() for name, split in again.splits.items()} == {
        name: split.digest() for name, split in dataset.splits.items()
    }


def test_the_extracted_folder(tmp_path, publish, build, rows, images, contents, zipped):
    publish(NAME, archive(zipped, table(rows), images))
    folder = tmp_path / "manual"
    (folder / "anywhere").mkdir(parents=True)
    (folder / "metadata.csv").write_bytes(table(rows))
    for name, content in images.items():
        (folder / "anywhere" / name).write_bytes(content)
    assert contents(build(NAME, manual_dir=str(folder))) == contents(build(NAME, root="downloaded"))


def edited(row=7, **cells):
    def edit(rows, images):
        rows[row] = rows[row] | cells

    return edit


def without_an_image(rows, images):
    del images["PAT_1_3.png"]


def twice(rows, images):
    rows[8] = rows[7]


def another_image(rows, images):
    images["PAT_999_0.png"] = images["PAT_0_0.png"]


def damaged(rows, images):
    images["PAT_1_3.png"] = images["PAT_1_3.png"][:60]


# Row 7 of the list is line 9 of the file.
MISTAKES = {
    "unknown class": (edited(diagnostic="BCX"), r"metadata\.csv, line 9: unknown class 'BCX'"),
    "no patient": (edited(patient_id=" "), r"line 9: no patient is given"),
    "missing image": (without_an_image, r"line 9: there is no image PAT_1_3\.png"),
    "row twice": (twice, r"line 10: PAT_1_3\.png is in an earlier line"),
    "damaged image": (damaged, r"imgs_part_.*PAT_1_3\.png: not a complete image"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_row_or_image(publish, build, rows, images, zipped, mistake):
    edit, message = MISTAKES[mistake]
    edit(rows, images)
    publish(NAME, archive(zipped, table(rows), images))
    with pytest.raises(ValueError, match=rf"zr7vgbcyr2-1\.zip cannot be used: .*{message}"):
        build(NAME)


TABLES = {
    "no column": (lambda rows: table(rows, COLUMNS[:-2]), r"no column 'diagnostic'; it has \["),
    "short row": (lambda rows: table(rows) + b"PAT_1,1\n", r"line 182: 2 cells .* header has 7"),
    "empty": (lambda rows: b"", "no column 'patient_id'"),
    "not text": (lambda rows: b"\xff\xfe" + table(rows), "not UTF-8"),
}


@pytest.mark.parametrize("mistake", TABLES)
def test_a_table_that_cannot_be_read(publish, build, rows, images, zipped, mistake):
    write, message = TABLES[mistake]
    publish(NAME, archive(zipped, write(rows), images))
    with pytest.raises(ValueError, match=rf"metadata\.csv.*{message}"):
        build(NAME)


def test_no_table(publish, build, rows, images, zipped):
    files = {f"imgs_part_1/{name}": content for name, content in images.items()}
    publish(NAME, zipped(files))
    with pytest.raises(ValueError, match=r"the file metadata\.csv is not there"):
        build(NAME)


def test_two_tables(publish, build, rows, images, zipped):
    tables = {"metadata.csv": table(rows), "old/metadata.csv": table(rows)}
    publish(NAME, zipped(tables | {f"imgs/{name}": content for name, content in images.items()}))
    with pytest.raises(
        ValueError, match=r"metadata\.csv is in several places .*: keep one of them"
    ):
        build(NAME)


def test_an_image_that_the_table_lacks(publish, build, rows, images, zipped, caplog):
    another_image(rows, images)
    publish(NAME, archive(zipped, table(rows), images))
    assert sum(map(len, build(NAME).splits.values())) == len(rows)
    assert "left 1 images out" in caplog.text and "PAT_999_0.png" in caplog.text


def test_an_image_in_two_parts(publish, build, rows, images, zipped):
    parts = {
        f"images/imgs_part_{part}.zip": zipped(
            {f"imgs_part_{part}/{name}": content for name, content in images.items()}
        )
        for part in (1, 2)
    }
    publish(NAME, zipped({"metadata.csv": table(rows)} | parts))
    with pytest.raises(ValueError, match=r"line 2: PAT_0_0\.png lies in several places"):
        build(NAME)
