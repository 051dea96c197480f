import csv
import io
import re

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.cli import main
from medmamba_jax.data import DataConfig, build_dataset
from medmamba_jax.data.build import find, prepare
from medmamba_jax.data.inspection.image_kinds import image_kind
from medmamba_jax.data.inspection.sheets import contact_sheet
from medmamba_jax.data.labelled_images import Files
from medmamba_jax.errors import UserError


@pytest.fixture
def inspect(tmp_path, command, monkeypatch):
    """Returns a function (*arguments) -> lines that `medmamba inspect` prints."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: command("inspect", *arguments)


@pytest.fixture
def folder(tmp_path, noise_png):
    """<root>/<class>/<patient>_<image>.png: 3 of 9, and 4 of 10."""
    for name, count in (("9", 3), ("10", 4)):
        for i in range(count):
            path = tmp_path / "images" / name / f"p{i // 2}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(noise_png(int(name) + i, (20, 30)))
    return tmp_path / "images"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_folder_is_counted_and_drawn(inspect, folder):
    out = inspect(folder)
    equal = (
        "10/p0_0.png = 9/p0_1.png (labelled '10', '9');"
        " 10/p0_1.png = 9/p1_2.png (labelled '10', '9')"
    )
    assert out == [
        f"images: images of the folder {folder}",
        "        all",
        "9         3",
        "10        4",
        "images    7",
        "",
        "sizes: 1: 30x20 px",
        "kinds: 1: PNG, 8-bit grey (7)",
        "cannot be read: none",
        "classes too small for 3 splits: none",
        "cannot be split: none",
        f"the same pixels again: 2: {equal}",
        f"the same pixels with different labels: 2: {equal}",
        "nearly the same pixels: none",
        "written: images_inspected",
    ]
    tile = pixels("images_inspected/sheet.png")[22:150, 4:132]
    image = Image.fromarray(pixels(folder / "9" / "p0_0.png"))
    shown = np.asarray(image.resize((128, 85), Image.Resampling.LANCZOS))
    assert (tile[22 : 22 + 85] == shown[..., None]).all()
    assert (tile[:22] == 220).all()  # the margin of an image that is no square


@pytest.mark.parametrize("known", [False, True])
def test_each_file_is_read_once_and_those_that_are_drawn_again(inspect, folder, monkeypatch, known):
    if known:  # by an earlier call
        inspect(folder)
    reads = []
    read = Files.__getitem__

    def counted(self, place):
        reads.append(place)
        return read(self, place)

    monkeypatch.setattr(Files, "__getitem__", counted)
    assert "kinds: 1: PNG, 8-bit grey (7)" in inspect(folder, "--augment", "light")
    drawn = [0, 4]  # the first image of each class
    assert sorted(reads) == sorted([*range(7), *drawn])


def test_a_file_that_the_system_cannot_read_is_named_and_the_others_are_counted(
    inspect, folder, monkeypatch
):
    read = Files.__getitem__

    def broken(self, place):
        if place == 1:
            raise OSError("Input/output error")
        return read(self, place)

    monkeypatch.setattr(Files, "__getitem__", broken)
    out = inspect(folder)
    assert "kinds: 2: PNG, 8-bit grey (6); unreadable (1)" in out
    assert f"cannot be read: 1: {folder / '10' / 'p0_1.png'} (Input/output error)" in out


def test_a_table_tells_of_patients_and_overlap(inspect, folder):
    rows = [
        f"{path.relative_to(folder.parent)},{path.parent.name},{'train' if i % 3 else 'test'}"
        f",{path.name[:2]}"
        for i, path in enumerate(sorted(folder.glob("*/*.png")))
    ]
    table = folder.parent / "my.csv"
    table.write_text("\n".join(["path,label,split,patient_id", *rows]))
    (folder / "9" / "p0_0.png").write_bytes(b"no image")
    out = inspect(table, "--out", "seen")
    assert out[1:6] == [
        "          train  test",
        "9             2     1",
        "10            2     2",
        "images        4     3",
        "patients      2     2",
    ]
    assert (
        "cannot be read: 1: " in out[9]
        and "9/p0_0.png (not an image file, but a text (8 bytes))" in out[9]
    )
    assert out[8] == "kinds: 2: PNG, 8-bit grey (6); a text (1)"
    assert out[-2].startswith("patients in several splits: 2: 'p0' (images/10/p0_1.png in train")
    assert out[-1] == "written: seen" and (folder.parent / "seen" / "sheet.png").is_file()


def test_arrays_with_a_row_for_each_class_of_a_multi_label_set(inspect, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 5), np.uint8)
    labels = np.tile([[1, 0, 1], [0, 0, 1]], (6, 1))
    np.savez("many.npz", x=images, y=labels, class_names=np.array(["a", "none", "c"]))
    out = inspect("many.npz")
    assert out[2:5] == ["a         6", "none      0", "c        12"]
    assert "kinds: 1: array, uint8, 5 channels (12)" in out
    assert "classes too small for 3 splits: 1: class 'none' has 0 images" in out
    assert pixels("many_inspected/sheet.png").shape == (3 * 154, 8 * 132 + 4, 3)


def test_numbers_and_choices_are_taken(inspect, folder):
    with pytest.raises(UserError, match="fraction"):
        inspect(folder, "--val-fraction=0.9", "--test-fraction=0.25")
    flags = ("--val-fraction=0.2", "--test-fraction=0.25", "--fit=pad", "--window=0,9")
    assert "images    6" in inspect(folder, "--subset=6", *flags)


def test_augmentation_is_drawn(inspect, folder):
    out = inspect(folder, "--augment", "light")
    assert out[-1] == "written: images_inspected"
    assert pixels("images_inspected/sheet.png").shape[0] == 2 * 160 + 4  # an image of each class


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["no/folder"], "no folder or file no/folder: set data.path"),
        (["no.csv"], "no file no.csv"),
        (["no_such_set", "--data-dir", "."], "no folder or file no_such_set: set data.path"),
        (["images", "--out", "file/x"], "file/x cannot be made (Not a directory): name a new one"),
        (["images", "--out", "images/9/x"], "would be inside the images of"),
        (["images", "--window", "3"], "data.window must be"),
        (["images", "--exclude", "no.txt"], "no file no.txt: set data.exclude"),
        (
            ["images", "--group-tag", "PatientID"],
            "7 of 7 images have no PatientID in a DICOM header",
        ),
        (["images", "--group-pattern", "(x"], "data.folder.group_pattern must be"),
        (["images", "--label-column", "x"], "data.csv.label_column is 'x', but the images come"),
    ],
)
def test_a_mistake_is_named(inspect, folder, arguments, problem):
    (folder.parent / "file").write_text("")
    with pytest.raises((UserError, FileNotFoundError), match=re.escape(problem)):
        inspect(*arguments)


def test_nothing_is_overwritten(inspect, folder):
    (folder.parent / "images_inspected").mkdir()
    assert inspect(folder)[-1] == "written: images_inspected_2"
    assert inspect(folder)[-1] == "written: images_inspected_3"
    assert not list((folder.parent / "images_inspected").iterdir())
    with pytest.raises(UserError, match=r"images_inspected_2 cannot be made .*: name a new one"):
        inspect(folder, "--out", "images_inspected_2")


def test_the_folder_is_never_inside_the_images(inspect, folder, monkeypatch):
    before = sorted(folder.rglob("*"))
    for start, path in ((folder, "."), (folder, folder), (folder / "9", "..")):
        monkeypatch.chdir(start)
        assert inspect(path)[-1].startswith(f"written: {folder.parent}/images_inspected")
    with pytest.raises(
        UserError, match=r"9/seen would be inside .*images: name one outside by --o"
    ):
        inspect("..", "--out", "../9/seen")
    monkeypatch.chdir(folder.parent)
    assert inspect("images", "--out", "new/folders/seen")[-1] == "written: new/folders/seen"
    assert sorted(folder.rglob("*")) == before


def test_images_of_which_none_can_be_read_are_a_finding(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert main(["inspect", "images"]) == 3
    out = capsys.readouterr().out
    assert "cannot be read: 7: images/" in out and "run `git lfs pull`" in out
    assert sorted(path.name for path in (folder.parent / "images_inspected").iterdir()) == [
        "duplicates.csv",
        "findings.csv",
    ]


def test_no_empty_folder_is_left_after_an_error(inspect, folder):
    with pytest.raises(UserError, match="7 of 7 images have no PatientID"):
        inspect("images", "--group-tag", "PatientID")
    assert not list(folder.parent.glob("*_inspected*"))


def test_settings_that_change_what_is_found_are_flags(inspect, folder, encode, tmp_path):
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) + 1000
    (folder / "9" / "deep.png").write_bytes(encode(deep))
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    (tmp_path / "out.txt").write_text("9/p0_1.png\n9/p1_2.png\n")
    (tmp_path / "split.csv").write_text(
        "\n".join(
            ["path,split", *(f"{name},{('train', 'val')[i % 2]}" for i, name in enumerate(names))]
        )
    )
    arguments = ("--exclude", "out.txt", "--split-file", "split.csv", "--window=1000,1100")
    out = inspect(folder, *arguments)
    assert out[1:5] == [
        "        train  val",
        "9           1    1",
        "10          2    2",
        "images      3    3",
    ]
    sheet = pixels("images_inspected/sheet.png")[22:150, 4:132]
    image = Image.fromarray(np.clip(np.rint((deep - 1000.0) * 255 / 100), 0, 255).astype(np.uint8))
    shown = np.asarray(image.resize((128, 85), Image.Resampling.LANCZOS))
    assert (sheet[22 : 22 + 85] == shown[..., None]).all()


def test_frames_of_files_are_told_or_counted(inspect, folder, caplog):
    pages = [Image.fromarray(np.full((9, 9), 20 * i, np.uint8)) for i in range(4)]
    for name, count in (("9", 4), ("10", 2)):
        pages[0].save(folder / name / "stack.tif", save_all=True, append_images=pages[1:count])
    out = inspect(folder, "--frame", "-1")
    assert out[2:5] == ["9         7", "10        6", "images   13"]
    assert "frames" not in caplog.text
    assert inspect(folder)[4] == "images    9"
    told = "2 files have 2 to 4 frames, and frame 0 of each is read: data.frame=NUMBER chooses"
    assert told in caplog.text
    caplog.clear()
    config = DataConfig(path=str(folder), image_size=8)
    prepare(find(config), config, config.preprocessing(3))
    assert told in caplog.text


def test_an_unknown_flag_is_answered_by_the_help_that_lists_the_flags(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(folder), "--config.data.frame=1"])
    assert capsys.readouterr().err.endswith("; see medmamba inspect --help\n")


def test_channels_in_the_first_axis_are_guessed(inspect, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 16, 16), np.uint8)
    np.savez("first.npz", x=images, y=np.arange(12) % 2)
    hint = "if the first axis holds the channels, save numpy.moveaxis(image, 0, -1)"
    assert f"kinds: 1: array, uint8, 16 channels, but {hint} (12)" in inspect("first.npz")
    with pytest.raises(UserError, match=f"16 channels, the model reads 3.*; {re.escape(hint)}"):
        DataConfig().preprocessing(3).decode(images[0])
    np.savez("last.npz", x=np.moveaxis(images, 1, -1), y=np.arange(12) % 2)
    assert "kinds: 1: array, uint8, 3 channels (12)" in inspect("last.npz")


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scripts_can_read_what_was_found(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(folder), "--out", "bad"]) == 3
    found = {row["finding"]: row for row in rows_of(tmp_path / "bad" / "findings.csv")}
    assert found["the same pixels with different labels"]["count"] == "2"
    assert {name for name, row in found.items() if row["needs_attention"] == "yes"} == {
        "the same pixels with different labels"
    }
    pairs = rows_of(tmp_path / "bad" / "duplicates.csv")
    assert [(row["path"], row["other_path"], row["distance"]) for row in pairs] == [
        ("10/p0_0.png", "9/p0_1.png", "0"),
        ("10/p0_1.png", "9/p1_2.png", "0"),
    ]
    for name in ("p0_1.png", "p1_2.png"):
        (folder / "9" / name).unlink()
    assert main(["inspect", str(folder)]) == 3  # one image is left of class 9
    assert "classes too small for 3 splits: 1: class '9' has 1 image" in capsys.readouterr().out
    for i in range(24):
        (folder / ("9", "10")[i % 2] / f"{i}.npy").write_bytes(npy(i))
    assert main(["inspect", str(folder)]) == 0


def test_what_training_would_refuse_is_found(inspect, folder, noise_png):
    for path in folder.glob("*/*.png"):
        path.unlink()
    for i in range(12):
        (folder / ("9", "10")[i % 2] / f"{i}.png").write_bytes(noise_png(100 + i))
    with pytest.raises(UserError) as error:
        build_dataset(DataConfig(path=str(folder)))
    out = inspect(folder)
    assert "classes too small for 3 splits: none" in out
    assert f"cannot be split: 1: {error.value}" in out
    for i in range(12, 24):
        (folder / ("9", "10")[i % 2] / f"{i}.png").write_bytes(noise_png(100 + i))
    build_dataset(DataConfig(path=str(folder)))
    assert "cannot be split: none" in inspect(folder)


def test_one_class_an_image_in_a_multi_label_set_is_told(inspect):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    labels = np.eye(3, dtype=int)[np.arange(30) % 3]
    np.savez("onehot.npz", x=images, y=labels)
    title = "one class an image in a multi-label set: 1: every image shows exactly one class"
    (line,) = [line for line in inspect("onehot.npz") if line.startswith(title)]
    assert "data.csv.label_column" in line and "y.argmax(1)" in line
    for name, y in (("one", labels.argmax(1)), ("several", np.maximum(labels, labels[0]))):
        np.savez(f"{name}.npz", x=images, y=y)
        assert "one class an image" not in "".join(inspect(f"{name}.npz"))


def npy(seed):
    content = io.BytesIO()
    np.save(content, np.random.default_rng(100 + seed).integers(0, 256, (9, 9), np.uint8))
    return content.getvalue()


def test_a_run_does_not_take_the_facts_of_inspect(inspect, folder, encode):
    """`inspect` decodes one channel of grey images, where a run decodes three."""
    inspect(folder)
    same = Image.open(folder / "9" / "p0_0.png")
    (folder / "9" / "again.bmp").write_bytes(encode(np.asarray(same), "BMP"))
    config = DataConfig(path=str(folder), image_size=32)
    ready = prepare(find(config), config, config.preprocessing(3))
    names = [{ready.images.names[row] for row in rows} for rows in ready.duplicates.sets()]
    assert {"10/p0_0.png", "9/p0_1.png"} in names and {"9/again.bmp", "9/p0_0.png"} in names


def test_names_of_classes_in_other_scripts_are_shown_or_told(caplog):
    tile = np.zeros((4, 4, 1), np.uint8)
    contact_sheet({"Пневмония, ψ": [tile]})
    assert "cannot show" not in caplog.text
    contact_sheet({"肺炎 a": [tile]})
    assert "cannot show the characters 炎 肺 of names" in caplog.text


def test_kinds_of_files(encode):
    grey = np.zeros((4, 4), np.uint8)
    colour = np.zeros((4, 4, 3), np.uint8)
    assert image_kind(encode(grey.astype(np.uint16))) == "PNG, 16-bit grey"
    assert image_kind(encode(colour, "TIFF")) == "TIFF, 8-bit colour"
    assert image_kind(encode(colour, "JPEG")) == "JPEG, 8-bit colour"
    assert image_kind(colour.astype(np.float32)) == "array, float32, 3 channels"
    assert image_kind(b"") == "an empty file"


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="no images to show"):
        contact_sheet({"a": []})


def test_real_chest_x_rays(inspect, real_data):
    out = inspect(real_data / "cxr_kermany_224" / "split.csv")
    assert "images     1,800  524   624" in out and "patients   1,514  468   427" in out
    assert "kinds: 1: JPEG, 8-bit colour (2,948)" in out
    assert "nearly the same pixels in two splits: none" in out
    assert any(line.startswith("patients in several splits: 224: 'N0439'") for line in out)
