import csv
import io
import unicodedata

import numpy as np
import pytest

from medmamba_jax.data import DataConfig, build_dataset
from medmamba_jax.data.config import CsvConfig
from medmamba_jax.data.csv_table import read_csv_table


@pytest.fixture
def make_table(tmp_path, noise_png):
    """Returns a function (text, **columns) -> data set; the table's files are x/00.png, ..."""
    (tmp_path / "x").mkdir()
    for i in range(40):
        (tmp_path / "x" / f"{i:02}.png").write_bytes(noise_png(i))

    def make_table(text, encoding="utf-8", allow_unreadable=False, **columns):
        path = tmp_path / "images.csv"
        path.write_bytes(text.encode(encoding))
        return build_dataset(
            DataConfig(path=str(path), csv=CsvConfig(**columns), allow_unreadable=allow_unreadable)
        )

    return make_table


def lines(header, cells, count=40):
    """A header and a row for each image; `cells(i)` is what follows the path."""
    return "\n".join([header, *(f"x/{i:02}.png,{cells(i)}" for i in range(count))]) + "\n"


def test_a_table_names_files_classes_splits_and_patients(make_table, noise_png):
    parts = ["train"] * 5 + ["val", "test", "test"]
    dataset = make_table(
        lines("path,label,split,patient_id", lambda i: f"{'ab'[i % 2]},{parts[i % 8]},p{i}")
    )
    assert dataset.class_names == ("a", "b") and dataset.task == "multiclass"
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 25,
        "val": 5,
        "test": 10,
    }
    for part, split in dataset.splits.items():
        for row in range(len(split)):
            i = int(split.names[row][2:4])
            assert parts[i % 8] == part
            assert split.read(row) == noise_png(i)
            assert split.labels[row] == split.labels[row] == i % 2
            assert split.groups[row] == f"p{i}"
            assert split.describe(row).endswith(f"x/{i:02}.png")


def test_integers_are_classes_in_the_order_of_their_values(make_table):
    dataset = make_table(lines("path,label", lambda i: [10, 9, "2", 100][i % 4]))
    assert dataset.class_names == ("2", "9", "10", "100")
    assert dataset.counts()["train"] == dict.fromkeys(("2", "9", "10", "100"), 6)


def test_patients_stay_together_where_the_table_has_no_split(make_table):
    dataset = make_table(lines("path,label,patient_id", lambda i: f"{'ab'[i // 3 % 2]},p{i // 3}"))
    groups = [set(split.groups) for split in dataset.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 14
    assert "split by 14 patients (groups), seed 0: train 60" in dataset.description


def test_a_split_column_can_be_set_aside_and_columns_can_have_any_name(make_table):
    text = lines("file,finding,part,split,person", lambda i: f"{'ab'[i % 2]},train,test,q{i}")
    settings = {"path_column": "file", "label_column": "finding", "group_column": "person"}
    dataset = make_table(text, split_column="", **settings)
    assert [len(split) for split in dataset.splits.values()] == [24, 4, 12]
    assert dataset.splits["test"].groups[0].startswith("q")


def test_missing_val_rows_are_split_off_train(make_table):
    dataset = make_table(
        lines("path,label,split", lambda i: f"{'ab'[i % 2]},{'test' if i < 10 else 'train'}")
    )
    assert [len(split) for split in dataset.splits.values()] == [26, 4, 10]
    assert "val split off train by image, seed 0" in dataset.description


def test_missing_test_rows_stay_missing(make_table):
    dataset = make_table(
        lines("path,label,split", lambda i: f"{'ab'[i % 2]},{'Valid' if i < 10 else 'Train'}")
    )
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 30, "val": 10}


def test_several_label_columns_make_a_multi_label_set(make_table):
    cells = ["1,0", "0,1.0", "1,-1", ",1", "nan,0.0"]
    dataset = make_table(
        lines("path,edema,effusion", lambda i: cells[i % 5]), label_column="edema, effusion"
    )
    assert dataset.task == "multilabel" and dataset.class_names == ("edema", "effusion")
    nan = np.nan
    wanted = np.array([[1, 0], [0, 1], [1, nan], [nan, 1], [nan, 0]], np.float32)
    for split in dataset.splits.values():
        assert split.labels.dtype == np.float32
        for row in range(len(split)):
            label = wanted[int(split.names[row][2:4]) % 5]
            np.testing.assert_array_equal(split.labels[row], label)
            np.testing.assert_array_equal(split.labels[row], label)


@pytest.mark.parametrize(
    ("separator", "encoding"), [(",", "utf-8-sig"), (";", "utf-8"), ("\t", "utf-8")]
)
def test_what_spreadsheets_write_is_read(make_table, separator, encoding):
    text = lines("path,label", lambda i: ' "größer, b"' if i % 2 else " a ")
    text = text.replace(",", separator).replace("größer" + separator, "größer,")
    text = text.replace(' "', '"').replace("\n", "\r\n") + "\r\n"
    assert make_table(text, encoding).class_names == ("a", "größer, b")


def weights_by_image(dataset):
    return {
        int(split.names[row][2:4]): split.weights[row]
        for split in dataset.splits.values()
        for row in range(len(split))
    }


@pytest.mark.parametrize("column", ["weight", "trust"])
def test_weights_follow_their_images(make_table, column):
    text = lines(f"path,label,{column}", lambda i: f"{'ab'[i % 2]},{(i + 1) / 4}")
    dataset = make_table(text, weight_column=column)
    assert weights_by_image(dataset) == {i: np.float32((i + 1) / 4) for i in range(40)}
    assert {split.weights.dtype for split in dataset.splits.values()} == {np.dtype(np.float32)}


def test_weights_may_be_constant_missing_or_set_aside(make_table):
    text = lines("path,label,weight", lambda i: f"{'ab'[i % 2]},{' 1e0'}")
    assert set(weights_by_image(make_table(text)).values()) == {1}
    aside = make_table(text, weight_column="")
    without = make_table(lines("path,label", lambda i: "ab"[i % 2]))
    for dataset in (aside, without):
        assert all(split.weights is None for split in dataset.splits.values())
    assert aside.splits["train"].digest() == without.splits["train"].digest()
    assert aside.splits["train"].digest() != make_table(text).splits["train"].digest()


def test_weights_of_damaged_files_are_dropped_with_them(make_table, tmp_path):
    (tmp_path / "x" / "07.png").write_bytes(b"")
    text = lines("path,label,weight", lambda i: f"{'ab'[i % 2]},{i + 1}")
    dataset = make_table(text, allow_unreadable=True)
    assert weights_by_image(dataset) == {i: i + 1 for i in range(40) if i != 7}


def test_damaged_files_are_dropped_on_request(make_table, tmp_path):
    (tmp_path / "x" / "07.png").write_bytes(b"")
    text = lines("path,label,patient_id", lambda i: f"{'ab'[i % 2]},p{i}")
    dataset = make_table(text, allow_unreadable=True)
    names = [split.names[i] for split in dataset.splits.values() for i in range(len(split))]
    assert len(names) == 39 and "x/07.png" not in names


def test_a_spelling_of_the_patients_column_is_not_overlooked(make_table):
    text = lines("path,label,Patient ID", lambda i: f"{'ab'[i % 2]},p{i}")
    with pytest.raises(ValueError, match=r"has the column 'Patient ID', .* looks for 'patient_id'"):
        make_table(text)
    assert make_table(text, group_column="").splits["train"].groups is None
    assert make_table(text, group_column="Patient ID").splits["train"].groups is not None


@pytest.mark.parametrize("text", ["NA", "<NA>", "NULL", "None", "N/A", "#N/A", "nan", ""])
def test_missing_labels_and_patients_are_refused(make_table, text):
    with pytest.raises(ValueError, match="line 2: no class"):
        make_table(lines("path,label", lambda i: "ab"[i % 2] if i else text))
    with pytest.raises(ValueError, match=r"line 2: 'patient_id' is .*; give each image a patient"):
        make_table(lines("path,label,patient_id", lambda i: f"{'ab'[i % 2]},{i if i else text}"))


def test_a_class_may_be_called_none(make_table):
    text = lines("path,label", lambda i: ["None", "NA"][i % 2])
    assert make_table(text, missing="").class_names == ("NA", "None")
    with pytest.raises(ValueError, match=r"no class .*'NA'"):
        make_table(text, missing="NA, unknown")


def test_equal_numbers_are_one_class_and_one_patient(make_table, caplog):
    dataset = make_table(
        lines(
            "path,label,patient_id",
            lambda i: f"{['1', '2', '2.0'][i % 3]},{i // 2}{'.0' * (i % 2)}",
        )
    )
    assert dataset.class_names == ("1", "2")
    groups = [set(split.groups) for split in dataset.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    assert "writes classes in several ways: read 2.0 as 2" in caplog.text


def test_images_may_lie_elsewhere(make_table, tmp_path):
    text = lines("path,label", lambda i: "ab"[i % 2])
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "x").rename(moved / "x")
    assert len(make_table(text, images=str(moved)).splits["train"]) == 24
    absolute = text.replace("x/", f"{moved}/x/")
    dataset = make_table(absolute, images=str(moved), absolute_paths=True)
    assert dataset.splits["train"].names[0].startswith("x/")
    dataset = make_table(absolute, absolute_paths=True)
    assert dataset.splits["train"].names[0].startswith("elsewhere/x/")
    with pytest.raises(ValueError, match=r"absolute path; .* data\.csv\.absolute_paths=True"):
        make_table(absolute)


def test_a_file_whose_name_is_stored_with_its_accents_apart_is_found(make_table, tmp_path):
    apart = unicodedata.normalize("NFD", "é.png")
    (tmp_path / "x" / "00.png").rename(tmp_path / "x" / apart)
    text = lines("path,label", lambda i: "ab"[i % 2]).replace("00.png", "\u00e9.png")
    names = [name for split in make_table(text).splits.values() for name in split.names]
    assert "x/\u00e9.png" in names


def test_dialects_are_read_as_by_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [["path", "label, fine", "note"], ["a.png", "1,5", 'say "x"'], ["b|c.png", "2;3", "ö"]]
    for delimiter in ",;\t|":
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            text = io.StringIO()
            csv.writer(text, delimiter=delimiter).writerows(rows)
            path = tmp_path / "t.csv"
            path.write_bytes(text.getvalue().encode(encoding))
            table = read_csv_table(path)
            frame = pandas.read_csv(path, sep=delimiter, encoding=encoding, dtype=str)
            assert list(table.header) == list(frame.columns)
            assert table.rows == frame.to_numpy().tolist() == rows[1:]


def test_what_excel_adds_is_left_out(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sep=;\r\npath;label;;\r\na.png;1,5;;\r\n;;;\r\n;;;\r\n")
    table = read_csv_table(path)
    assert table.header == ("path", "label") and table.rows == [["a.png", "1,5"]]
    assert table.where(0) == "line 3"


def test_paths_without_endings_and_the_folder_that_they_are_relative_to(tmp_path, monkeypatch):
    """HAM10000's table has bare names such as ISIC_0027777."""
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "ISIC_0027777.jpg").write_bytes(b"")
    (tmp_path / "my.csv").write_text("path,label\nimg/ISIC_0027777,nv\nimg/ISIC_0027778,bkl\n")
    monkeypatch.chdir(tmp_path)
    message = (
        r"names 2 image files that are not there: .*\. But img/ISIC_0027777\.jpg is there: write"
        rf" the ending into the table, too\. Paths are relative to {tmp_path};"
    )
    with pytest.raises(ValueError, match=message):
        build_dataset(DataConfig(path="my.csv"))
