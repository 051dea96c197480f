"""Mistakes in a user's images, and the one line that each is answered with.

A mistake is a function below. It writes files into a folder that already holds good ones, and
returns what the user would set: `data` settings, and under "own" an object passed from Python. Its
patterns are found in the message: the file or row, the cause and the remedy.
"""

import io
import os
import pathlib
import re
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import medmamba_jax as mm
from medmamba_jax.errors import DataUnavailableError

MAIN = pathlib.Path(__file__).parents[2] / "main.py"
# What main.py answers with one line and exit code 2.
USER_ERRORS = (ValueError, FileNotFoundError, NotImplementedError, DataUnavailableError)
MISTAKES = {}
RNG = np.random.default_rng(0)
ARRAYS = {
    "x": RNG.integers(0, 256, (60, 32, 32), np.uint8),
    "y": np.arange(60) % 2,
}


def mistake(*patterns):
    def register(function):
        assert function.__name__ not in MISTAKES
        MISTAKES[function.__name__] = (function, patterns)
        return function

    return register


@pytest.fixture(scope="module")
def good_images(tmp_path_factory):
    """Folders a and b with 30 PNG files each."""
    root = tmp_path_factory.mktemp("good")
    for i in range(60):
        path = root / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8)).save(path)
    return root


@pytest.fixture
def folder(tmp_path, good_images):
    """A folder of one's own with the good images, which are links to the files."""
    root = tmp_path / "images"
    for path in good_images.glob("*/*.png"):
        link = root / path.relative_to(good_images)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, link)
    return root


def replace(path, content):
    """Writes a file without touching what it was a link to."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def table(folder, *changes, header="path,label,split,patient_id", encoding="utf-8"):
    """Settings for a table of the good images; `changes` are (old, new) texts, each found once."""
    parts = ["train"] * 4 + ["val"] + ["test"]
    rows = [f"{'ab'[i % 2]}/{i:02}.png,{'ab'[i % 2]},{parts[i // 10]},p{i}" for i in range(60)]
    text = "\n".join([header, *rows]) + "\n"
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    replace(folder / "images.csv", text.encode(encoding))
    return {"path": str(folder / "images.csv")}


def npz(folder, **changes):
    arrays = {**ARRAYS, **changes}
    path = folder / "arrays.npz"
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return {"path": str(path)}


def images(path, **settings):
    return {"path": str(path), **settings}


# Folders


@mistake(r"no folder or file .*nowhere", "set data.path")
def missing_folder(folder):
    return images(folder / "nowhere")


@mistake("data.path and data.name are unset", "set data.path to your images, or data.name")
def path_not_set(folder):
    return images("")


@mistake(r"data\.path is '.*images' and data\.name is 'kvasir'", "leave one of them empty")
def path_and_name(folder):
    return images(folder, name="kvasir")


@mistake(
    r"data\.csv\.label_column is 'grade', but the images come from the source 'folder'",
    "leave it at its default 'label'",
)
def setting_of_another_source(folder):
    return images(folder, csv={"label_column": "grade"})


@mistake(r"00\.png is a single image", "set data.path to the folder of all images")
def single_image(folder):
    return images(folder / "a" / "00.png")


@mistake(r"no source recognises the file .*notes\.pdf", r"a folder of images; a table \(\.csv")
def file_of_another_kind(folder):
    (folder / "notes.pdf").write_bytes(b"%PDF")
    return images(folder / "notes.pdf")


@mistake(r"no image files in the class folders of .*empty")
def no_images(folder):
    (folder / "empty" / "a").mkdir(parents=True)
    return images(folder / "empty")


@mistake("images of the folder .*: all are of the class 'a'", "training needs two or more")
def one_class(folder):
    (folder / "b").rename(folder.parent / "elsewhere")
    return images(folder)


@mistake("images of the folder .*: all are of the class 'a'", "training needs two or more")
def class_folder_that_is_a_file(folder):
    (folder / "b").rename(folder.parent / "elsewhere")
    (folder / "b").write_text("")
    return images(folder)


@mistake(r"images\.zip is an archive", "extract it")
def zip_in_place_of_a_folder(folder):
    with zipfile.ZipFile(folder.parent / "images.zip", "w") as archive:
        archive.write(folder / "a" / "00.png", "a/00.png")
    return images(folder.parent / "images.zip")


@mistake(r"1 of 60 images cannot be read: .*a/00\.png \(not an image file", "Replace or remove")
def unreadable_image(folder):
    replace(folder / "a" / "00.png", b"this is no image")
    return images(folder)


@mistake(r"a/00\.jpg \(not a complete image file", "Replace or remove")
def truncated_jpeg(folder):
    (folder / "a" / "00.png").unlink()
    Image.fromarray(ARRAYS["x"][0]).save(folder / "a" / "00.jpg")
    content = (folder / "a" / "00.jpg").read_bytes()
    replace(folder / "a" / "00.jpg", content[: len(content) // 2])
    return images(folder)


@mistake(r"b/01\.png \(not an image file .*, but an empty file \(0 bytes\)", "Replace or remove")
def zero_bytes(folder):
    replace(folder / "b" / "01.png", b"")
    return images(folder)


@mistake(r"b/01\.png \(the image is too large", "Replace or remove")
def decompression_bomb(folder):
    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    replace(folder / "b" / "01.png", b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return images(folder)


@mistake(r"1 of 60 images .*b/01\.png", r"or let data\.allow_unreadable drop them$")
def one_text_among_images(folder):
    replace(folder / "b" / "01.png", b"no image")
    return images(folder)


@mistake(r"60 of 60 images .* \(frame 99 was asked for .*: choose 0\)", r"Replace or remove them$")
def frame_that_no_file_has(folder):
    return images(folder, frame=99)


@mistake(r"60 of 60 images .*x\[0\] \(some pixels are NaN", r"Replace or remove them$")
def arrays_of_nan(folder):
    np.savez(folder.parent / "nan.npz", x=np.full((60, 8, 8), np.nan), y=ARRAYS["y"])
    return images(folder.parent / "nan.npz")


@mistake(r"b/01\.npy \(the image has 5 channels, the model reads 3", r"model\.in_channels")
def other_number_of_channels(folder):
    np.save(folder / "b" / "01.npy", np.zeros((32, 32, 5), np.uint8))
    return images(folder)


@mistake(r"b/01\.npy \(some pixels are NaN or infinite", "replace them")
def pixels_that_are_nan(folder):
    np.save(folder / "b" / "01.npy", np.full((32, 32), np.nan, np.float32))
    return images(folder)


@mistake("classes 'A' and 'a', which differ only by case", "give both one name")
def class_folders_that_differ_by_case(folder):
    replace(folder / "A" / "00.png", (folder / "a" / "00.png").read_bytes())
    return images(folder)


@mistake("none of the 2 image files of test can be read", r"replace them\. .*x\.png \(not an image")
def every_test_image_damaged(folder):
    for name in "ab":
        (folder / "train").mkdir(exist_ok=True)
        (folder / name).rename(folder / "train" / name)
        (folder / "test" / name).mkdir(parents=True)
        (folder / "test" / name / "x.png").write_bytes(b"no image")
    return images(folder, allow_unreadable=True)


@mistake("has the folder train, but none for val or test", "add val/<class>/, or put")
def no_other_folder(folder):
    (folder / "train").mkdir()
    for name in "ab":
        (folder / name).rename(folder / "train" / name)
    return images(folder)


@mistake("test has 2 images of class 'c', train has none", "add some to train")
def class_that_train_lacks(folder):
    for part in ("train", "val", "test"):
        for name in "ab":
            (folder / part / name).mkdir(parents=True)
    for i, path in enumerate(sorted(folder.glob("[ab]/*"))):
        part = ("train", "train", "val", "test")[i % 4]
        path.rename(folder / part / path.parent.name / path.name)
    (folder / "test" / "c").mkdir()
    for path in sorted((folder / "test" / "b").iterdir())[:2]:
        path.rename(folder / "test" / "c" / path.name)
    return images(folder)


@mistake("30 directly in it", r"give each class a folder, or, .* set data\.path to .*images")
def root_that_is_a_class(folder):
    return images(folder / "a")


@mistake(
    r"same pixels are in more than one split, once: \S+/a/00\.png in \w+ = \S+/a/00\.png in \w+",
    "Keep one of these files",
    "data.allow_overlap=True",
)
def image_in_two_splits(folder):
    for part in ("train", "test"):
        (folder / part).mkdir()
    for name in "ab":
        (folder / name).rename(folder / "train" / name)
        replace(folder / "test" / name / "00.png", (folder / "train/a/00.png").read_bytes())
    replace(folder / "test/b/00.png", (folder / "train/b/01.png").read_bytes())
    (folder / "train/b/01.png").unlink()
    return images(folder)


@mistake("finds no patient in a/00.png", "change the pattern")
def pattern_that_does_not_match(folder):
    return images(folder, folder={"group_pattern": "(patient[0-9]+)"})


@mistake("data.folder.group_pattern must be a regular expression with one group")
def pattern_without_a_group(folder):
    return images(folder, folder={"group_pattern": "p[0-9]+"})


@mistake("class 'b' has 3 images, which leaves none for val", "add images")
def too_few_images_of_a_class(folder):
    for path in sorted((folder / "b").iterdir())[3:]:
        path.unlink()
    return images(folder)


# Tables


@mistake(r"no file .*nowhere\.csv", "give the path of a CSV file")
def missing_table(folder):
    return {"path": str(folder / "nowhere.csv")}


@mistake(r"images\.csv has no column 'path'", "first line, which names the columns, is 'a/00.png")
def table_without_header(folder):
    return table(folder, ("path,label,split,patient_id\n", ""))


@mistake(r"images\.csv has no column 'finding'", "is 'path, label, split, patient_id'")
def unknown_column(folder):
    return {**table(folder), "csv": {"label_column": "finding"}}


@mistake(r"images\.csv, line 1: two columns are called 'split'", "rename one")
def duplicate_header(folder):
    return table(folder, header="path,label,split,split")


@mistake("has the column 'Patient-ID', but data looks for 'patient_id'", "rename the column, or")
def header_in_another_spelling(folder):
    return table(folder, header="path,label,split,Patient-ID")


@mistake(
    "has the column 'Subject': if it names patients", "set data.csv.group_column=Subject; if not"
)
def patients_under_another_name(folder):
    return table(folder, header="path,label,split,Subject")


@mistake(r"images\.csv, line 2: /data/00\.png is an absolute path", "write it relative")
def absolute_path(folder):
    return table(folder, ("a/00.png", "/data/00.png"))


@mistake(r"images\.csv, line 2: C:\\data\\00\.png is an absolute path", "write it relative")
def absolute_path_of_windows(folder):
    return table(folder, ("a/00.png", "C:\\data\\00.png"))


@mistake(r"images\.csv, line 3: \.\./01\.png leaves the folder", "move the table")
def path_outside_the_folder(folder):
    replace(folder.parent / "01.png", (folder / "b" / "01.png").read_bytes())
    return table(folder, ("b/01.png", "../01.png"))


@mistake(r"images\.csv names 1 image files that are not there: b/1\.png in line 3", "add the files")
def file_that_is_not_there(folder):
    return table(folder, ("b/01.png", "b/1.png"))


@mistake(r"images\.csv, line 3: the column 'path' is empty", "name an image file")
def no_path(folder):
    return table(folder, ("b/01.png", ""))


@mistake(r"images\.csv, line 4: \./a/00\.png was in line 2 already", "an image has one row")
def path_that_is_there_twice(folder):
    return table(folder, ("a/02.png", "./a/00.png"))


@mistake(r"images\.csv, line 12: no class \('label' is 'NaN'\)", "write one")
def label_that_is_nan(folder):
    return table(folder, ("a/10.png,a", "a/10.png,NaN"))


@mistake(r"images\.csv, line 12: no class \('label' is ''\)", "write one")
def label_that_is_missing(folder):
    return table(folder, ("a/10.png,a", "a/10.png,"))


@mistake("the classes 'B' and 'b', which differ only by case", "give both one name")
def labels_that_differ_by_case(folder):
    return table(folder, ("b/11.png,b", "b/11.png,B"))


@mistake(r"images\.csv, line 2: 'label' is '2'; write 1 where", "0 where it does not")
def label_that_is_neither_yes_nor_no(folder):
    rows = [f"{'ab'[i % 2]}/{i:02}.png,{2 - i},1" for i in range(2)]
    replace(folder / "images.csv", "\n".join(["path,label,other", *rows]).encode())
    return {"path": str(folder / "images.csv"), "csv": {"label_column": "label,other"}}


@mistake("data.csv.label_column must be distinct names")
def label_column_named_twice(folder):
    return {**table(folder), "csv": {"label_column": "label,label"}}


@mistake(r"images\.csv, line 2: 'split' is 'training'; write train, val or test")
def unknown_split(folder):
    return table(folder, ("a/00.png,a,train", "a/00.png,a,training"))


@mistake(
    "no row is for val or test in the column 'split'",
    "add some, or set data.csv.split_column=''",
)
def split_without_images(folder):
    text = re.sub(",(test|val),", ",train,", pathlib.Path(table(folder)["path"]).read_text())
    replace(folder / "images.csv", text.encode())
    return {"path": str(folder / "images.csv")}


@mistake(
    r"1 of the patients \(groups\) are in more than one split: 'p3' \(b/03\.png in train and"
    r" b/59\.png in test\)",
    "data.csv.split_column=''",
    "data.allow_overlap=True",
)
def patient_in_two_splits(folder):
    return table(folder, ("test,p59", "test,p3"))


@mistake(r"images\.csv, line 5: 'patient_id' is ''", "give each image a patient")
def image_without_a_patient(folder):
    return table(folder, ("train,p3\n", "train,\n"))


def weighted(folder, weight):
    """A table whose fourth image has this weight, and all others 1."""
    text = pathlib.Path(table(folder)["path"]).read_text().replace("patient_id", "weight")
    text = re.sub(r"p\d+$", "1", text, flags=re.MULTILINE)
    text = text.replace("b/03.png,b,train,1", f"b/03.png,b,train,{weight}")
    replace(folder / "images.csv", text.encode())
    return {"path": str(folder / "images.csv")}


@mistake(
    r"images\.csv, line 5: 'weight' is ''; write a positive number", "data.csv.weight_column=''"
)
def image_without_a_weight(folder):
    return weighted(folder, "")


@mistake(r"images\.csv, line 5: 'weight' is '0'; write a positive number")
def weight_of_nothing(folder):
    return weighted(folder, "0")


@mistake(r"images\.csv, line 5: 'weight' is '-1'; write a positive number")
def negative_weight(folder):
    return weighted(folder, "-1")


@mistake(r"images\.csv, line 5: 'weight' is 'high'; write a positive number")
def weight_that_is_no_number(folder):
    return weighted(folder, "high")


@mistake(r"images\.csv, line 5: 'weight' is '1e39'; write a positive number")
def weight_that_float32_cannot_hold(folder):
    return weighted(folder, "1e39")


@mistake(r"images\.csv has no column 'trust'")
def unknown_weight_column(folder):
    return {**table(folder), "csv": {"weight_column": "trust"}}


@mistake(
    "data.csv.weight_column must be another column than those of data.csv.label_column", "or empty"
)
def labels_as_weights(folder):
    return {**table(folder), "csv": {"weight_column": "label"}}


@mistake(r"data\['train'\]\.weights hold nan for data\['train'\]\[3\]; give positive, finite")
def object_with_a_weight_that_is_not_known(folder):
    train, test = Own(GOOD), Own(GOOD)
    train.weights = np.where(np.arange(len(GOOD)) == 3, np.nan, 1)
    return {"own": {"train": train, "test": test}}


@mistake("some splits of data have weights and some have none", "give them to all")
def object_with_weights_in_one_split(folder):
    train, test = Own(GOOD), Own(GOOD)
    train.weights = np.ones(len(GOOD))
    return {"own": {"train": train, "test": test}}


@mistake(r"images\.csv is not UTF-8 text", "save it as CSV in UTF-8")
def table_that_is_an_archive(folder):
    with zipfile.ZipFile(replace(folder / "images.csv", b""), "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return {"path": str(folder / "images.csv")}


@mistake(r"images\.csv, line 3 has 3 cells, the header 4", "quote cells")
def row_that_is_short(folder):
    return table(folder, ("b/01.png,b,train,p1\n", "b/01.png,b,train\n"))


@mistake(r"images\.csv, line 61: unexpected end of data", "mend the line")
def quote_that_is_not_closed(folder):
    return table(folder, ("b/59.png,b", 'b/59.png,"b'))


@mistake(r"images\.csv holds only one line", "a line for each image")
def table_without_rows(folder):
    replace(folder / "images.csv", b"path,label\n")
    return {"path": str(folder / "images.csv")}


@mistake(r"images\.csv holds nothing", "a line that names the columns")
def empty_table(folder):
    replace(folder / "images.csv", b"")
    return {"path": str(folder / "images.csv")}


# Arrays


@mistake(r"no file .*nowhere\.npz", "set data.path to the npz file")
def missing_npz(folder):
    return {"path": str(folder / "nowhere.npz")}


@mistake(r"arrays\.npz is not an npz file", "save it by numpy.savez")
def npy_called_npz(folder):
    with (folder / "arrays.npz").open("wb") as file:
        np.save(file, ARRAYS["x"])
    return {"path": str(folder / "arrays.npz")}


@mistake(r"arrays\.npz is not an npz file, or is cut off", "get it again")
def truncated_npz(folder):
    path = pathlib.Path(npz(folder)["path"])
    path.write_bytes(path.read_bytes()[:-100])
    return {"path": str(path)}


@mistake(r"arrays\.npz is damaged \(Bad CRC-32", "get it again")
def npz_with_a_flipped_bit(folder):
    path = pathlib.Path(npz(folder)["path"])
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    return {"path": str(path)}


@mistake(r"arrays\.npz: y is pickled", "would run any code in it: save arrays of numbers or text")
def pickled_labels(folder):
    return npz(folder, y=np.array([*range(59), None], object))


@mistake(r"arrays\.npz: y claims to be int64 \(10000000000000,\), .* holds 480", "get it again")
def labels_that_claim_a_giant_shape(folder):
    settings = npz(folder, y=None)
    header = io.BytesIO()
    claim = {"descr": "<i8", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(settings["path"], "a") as archive:
        archive.writestr("y.npy", header.getvalue() + ARRAYS["y"].tobytes())
    return settings


@mistake(r"arrays\.npz: x is pickled", "save arrays of numbers or text, of one shape and dtype")
def images_of_several_shapes(folder):
    ragged = np.empty(60, object)
    ragged[:] = [np.zeros((i + 1, 4), np.uint8) for i in range(60)]
    return npz(folder, x=ragged)


@mistake(r"arrays\.npz: x must be numbers \(n, h, w\)", r"got <U1 \(60, 4, 4\)")
def images_of_text(folder):
    return npz(folder, x=np.full((60, 4, 4), "1"))


@mistake(r"arrays\.npz: x must be numbers \(n, h, w\)", r"got uint8 \(60, 1024\)")
def images_of_the_wrong_rank(folder):
    return npz(folder, x=ARRAYS["x"].reshape(60, -1))


@mistake(r"arrays\.npz: it has x but no y", "add the labels")
def no_labels(folder):
    return npz(folder, y=None)


@mistake(r"arrays\.npz: it holds \['images', 'y'\]", "must hold .*train,val,test.*_images")
def arrays_of_other_names(folder):
    return npz(folder, x=None, images=ARRAYS["x"])


@mistake(r"arrays\.npz: y has the shape \(59,\), but x holds 60 images")
def label_too_few(folder):
    return npz(folder, y=ARRAYS["y"][:59])


@mistake(r"arrays\.npz: the label of image 7 is NaN", "leave out")
def nan_among_the_labels_of_an_npz(folder):
    labels = ARRAYS["y"].astype(float)
    labels[7] = np.nan
    return npz(folder, y=labels)


@mistake(r"arrays\.npz: labels must be a vector of integers", r"got shape \(60,\), dtype float64")
def labels_of_the_wrong_dtype(folder):
    return npz(folder, y=ARRAYS["y"] / 2)


@mistake(r"arrays\.npz: labels must be", r"got shape \(60, 2, 2\)")
def labels_of_the_wrong_rank(folder):
    return npz(folder, y=np.zeros((60, 2, 2), int))


@mistake(r"arrays\.npz: the label of x\[9\] is 2", "an index into the 2 class_names")
def label_out_of_range(folder):
    labels = ARRAYS["y"].copy()
    labels[9] = 2
    return npz(folder, y=labels, class_names=np.array(["no", "yes"]))


@mistake(r"arrays\.npz: the label of x\[9\] is -1", "must be 0 or more")
def negative_label(folder):
    labels = ARRAYS["y"].copy()
    labels[9] = -1
    return npz(folder, y=labels)


@mistake(r"x\[3\] has the patient \(group\) 'nan', which names nobody", "of its own where none")
def patient_of_an_npz_that_is_not_known(folder):
    return npz(folder, groups=np.where(np.arange(60) % 20 == 3, np.nan, np.arange(60) // 2))


@mistake(r"arrays of .*arrays\.npz: all are of the class '0'", "training needs two or more")
def labels_of_one_class(folder):
    return npz(folder, y=np.zeros(60, int))


# Splits


@mistake("""data.fold must be like "2/5", or empty; got '6/5'""")
def fold_out_of_range(folder):
    return images(folder, fold="6/5")


@mistake("""data.fold must be like "2/5", or empty; got 'two'""")
def fold_that_is_no_number(folder):
    return images(folder, fold="two")


@mistake("class 'a' has 30 images; class 'b' has 30 images, too few for 31 folds", "ask for fewer")
def more_folds_than_images(folder):
    return images(folder, fold="1/31")


def split_file(folder, change):
    rows = [f"{'ab'[i % 2]}/{i:02}.png,{('train', 'val', 'test')[i // 20]}" for i in range(60)]
    replace(folder / "split.csv", "\n".join(change(["path,split", *rows])).encode())
    return images(folder, split_file=str(folder / "split.csv"))


@mistake(r"no file .*split\.csv", "give the path of a CSV file")
def missing_split_file(folder):
    return images(folder, split_file=str(folder / "split.csv"))


@mistake(r"split\.csv lacks 2 of the 60 images: a/58\.png; b/59\.png", "add a row for each")
def split_file_that_lacks_images(folder):
    return split_file(folder, lambda rows: rows[:-2])


@mistake(r"split\.csv, line 62: a/99\.png is none of the images", "take the row out")
def split_file_of_other_images(folder):
    return split_file(folder, lambda rows: [*rows, "a/99.png,test"]) | {"split_strict": True}


@mistake(r"split\.csv, line 62: a/00\.png has a row already", "leave one")
def split_file_that_names_an_image_twice(folder):
    return split_file(folder, lambda rows: [*rows, "a/00.png,test"])


@mistake(r"split\.csv, line 2: 'split' is 'holdout'", "write train, val or test")
def split_file_of_other_splits(folder):
    return split_file(folder, lambda rows: [rows[0], "a/00.png,holdout", *rows[2:]])


@mistake(r"split\.csv has no row of the split val", "add some")
def split_file_without_val(folder):
    return split_file(folder, lambda rows: [row.replace(",val", ",train") for row in rows])


@mistake("data.fold must be empty with data.split_file")
def fold_and_split_file(folder):
    return split_file(folder, lambda rows: rows) | {"fold": "1/5"}


# Objects passed from Python


class Own:
    class_names = ("a", "b")

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


GOOD = [{"image": image, "label": label} for image, label in zip(*ARRAYS.values(), strict=True)]


@mistake("data is a list without class_names", "pass a Dataset, or an object with len")
def object_without_class_names(folder):
    return {"own": GOOD}


@mistake("data is a Own of length 0", "pass images")
def object_without_images(folder):
    return {"own": Own([])}


@mistake(r"data\[1\] is no dictionary with image and label, but a tuple", "return {'image'")
def element_that_is_a_tuple(folder):
    return {"own": Own([GOOD[0], (ARRAYS["x"][1], 1)])}


@mistake(r"data\[0\]: the image is a Image", "return the bytes of an image file or a NumPy array")
def element_with_a_pillow_image(folder):
    return {"own": Own([{"image": Image.new("L", (8, 8)), "label": 0}])}


@mistake(r"data has the keys \['train', 'valid'\]", "must have 'train', and 'val' or 'test'")
def dictionary_of_other_splits(folder):
    return {"own": {"train": Own(GOOD), "valid": Own(GOOD)}}


@mistake("labels of Own run from 0 to 1000", "2 classes")
def label_without_a_class_name(folder):
    items = [*GOOD, {"image": ARRAYS["x"][0], "label": 1000}]
    return {"own": {"train": Own(items), "test": Own(GOOD), "val": Own(GOOD)}}


@mistake(r"data\[7\] has the patient \(group\) 'None'", "give each image one")
def object_with_a_patient_that_is_not_known(folder):
    own = Own(GOOD)
    own.groups = [None if i == 7 else f"p{i // 2}" for i in range(60)]
    return {"own": own}


@mistake(r"of the patients \(groups\) are in more than one split: '1' \(data\['train'\]\[1\]")
def patients_that_are_integers_in_one_split(folder):
    train, test = Own(GOOD[:40]), Own(GOOD[40:])
    train.groups, test.groups = np.arange(40), np.r_[1.0, np.arange(41.0, 60.0)]
    return {"own": {"train": train, "test": test}}


@mistake(r"same pixels .*60 times: .*data\['train'\]\[2\] in train = data\['test'\]\[2\] in test")
def object_that_is_train_and_test(folder):
    return {"own": {"train": Own(GOOD), "test": Own(GOOD)}}


def prepare(folder, settings):
    """What main.py does before it trains."""
    settings = dict(settings)
    own = settings.pop("own", None)
    config = mm.default_config()
    config.model.variant = "tiny"
    config.train.batch_size = 8
    config.data.update(image_size=32, cache_dir=str(folder.parent / "cache"), **settings)
    with mm.start_run(config, folder.parent / "run", own) as run:
        return run


def test_the_images_are_good_without_a_mistake(folder):
    for settings in (images(folder), table(folder), npz(folder), {"own": Own(GOOD)}):
        assert prepare(folder, settings).steps in (4, 5)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_cause_and_remedy(name, folder):
    make, patterns = MISTAKES[name]
    settings = make(folder)
    for _ in range(2):
        with pytest.raises(USER_ERRORS) as error:
            prepare(folder, settings)
        line = " ".join(str(error.value).split())
        for pattern in patterns:
            assert re.search(pattern, line), line
        assert not (folder.parent / "run").exists()


@pytest.mark.parametrize("name", ["truncated_jpeg"])
def test_main_ends_with_one_line_and_exit_code_2(name, folder, tmp_path):
    make, patterns = MISTAKES[name]
    settings = make(folder) | {"cache_dir": str(tmp_path / "cache")}
    arguments = [f"--config.data.{key}={value}" for key, value in settings.items()]
    config = f"--config={MAIN.parent / 'configs' / 'image_folder.py'}:testing"
    result = subprocess.run(
        [sys.executable, str(MAIN), config, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(MAIN.parent), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and all(re.search(pattern, line) for pattern in patterns)
    assert not list(tmp_path.rglob("run.json"))
