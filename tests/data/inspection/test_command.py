import re

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data.inspection.image_kinds import image_kind
from medmamba_jax.data.inspection.sheets import contact_sheet
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
    assert out == [
        f"images: images of the folder {folder}",
        "        all",
        "9         3",
        "10        4",
        "images    7",
        "",
        "sizes: 30x20 px",
        "kinds: PNG, 8-bit grey (7)",
        "cannot be read: none",
        "the same pixels again in a split: 2: 10/p0_0.png in all = 9/p0_1.png in all (labelled"
        " '10', '9'); 10/p0_1.png in all = 9/p1_2.png in all (labelled '10', '9')",
        "picture: images.png",
    ]
    tile = pixels("images.png")[22:150, 4:132]
    image = Image.fromarray(pixels(folder / "9" / "p0_0.png"))
    shown = np.asarray(image.resize((128, 85), Image.Resampling.LANCZOS))
    assert (tile[22 : 22 + 85] == shown[..., None]).all()
    assert (tile[:22] == 220).all()  # the margin of an image that is no square


def test_a_table_tells_of_patients_and_overlap(inspect, folder):
    rows = [
        f"{path.relative_to(folder.parent)},{path.parent.name},{'train' if i % 3 else 'test'}"
        f",{path.name[:2]}"
        for i, path in enumerate(sorted(folder.glob("*/*.png")))
    ]
    table = folder.parent / "my.csv"
    table.write_text("\n".join(["path,label,split,patient_id", *rows]))
    (folder / "9" / "p0_0.png").write_bytes(b"no image")
    out = inspect(table, "--output", "sheet.png")
    assert out[1:6] == [
        "          train  test",
        "9             2     1",
        "10            2     2",
        "images        4     3",
        "patients      2     2",
    ]
    assert "cannot be read: 1: " in out[9] and "9/p0_0.png (not an image file (8 bytes))" in out[9]
    assert out[8] == "kinds: PNG, 8-bit grey (6), no image that can be opened (1)"
    assert out[-2].startswith("patients in several splits: 2: 'p0' (images/10/p0_1.png in train")
    assert out[-1] == "picture: sheet.png" and (folder.parent / "sheet.png").is_file()


def test_arrays_with_a_row_for_each_class_of_a_multi_label_set(inspect, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 5), np.uint8)
    labels = np.tile([[1, 0, 1], [0, 0, 1]], (6, 1))
    np.savez("many.npz", x=images, y=labels, class_names=np.array(["a", "none", "c"]))
    out = inspect("many.npz")
    assert out[2:5] == ["a         6", "none      0", "c        12"]
    assert "kinds: array, uint8, 5 channels (12)" in out
    assert pixels("many.png").shape == (3 * 154, 8 * 132 + 4, 3)


def test_augmentation_is_drawn(inspect, folder):
    out = inspect(folder, "--augment", "light")
    assert out[-1] == "picture: images_light.png"
    assert pixels("images_light.png").shape[0] == 2 * 160 + 4  # an image of each class


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["no/folder"], "no folder or file no/folder: set data.path"),
        (["no.csv"], "no file no.csv"),
        (["no_such_set", "--data-dir", "."], "no folder or file no_such_set: set data.path"),
        (["images", "--output", "nowhere/x.png"], "nowhere/x.png cannot be written"),
        (["images", "--group-pattern", "(x"], "data.folder.group_pattern must be"),
        (["images", "--label-column", "x"], "data.csv.label_column is 'x', but the images come"),
    ],
)
def test_a_mistake_is_named(inspect, folder, arguments, problem):
    with pytest.raises((UserError, FileNotFoundError), match=re.escape(problem)):
        inspect(*arguments)


def test_a_picture_that_exists_is_kept(inspect, folder):
    picture = folder.parent / "images.png"
    picture.write_bytes(b"my own")
    with pytest.raises(UserError, match=r"images\.png exists: .* --output, .* --overwrite"):
        inspect(folder)
    assert picture.read_bytes() == b"my own"
    assert inspect(folder, "--output", "other.png")[-1] == "picture: other.png"
    assert inspect(folder, "--overwrite")[-1] == "picture: images.png"
    assert pixels(picture).shape == (2 * 154, 4 * 132 + 4, 3)


def test_kinds_of_files(encode):
    grey = np.zeros((4, 4), np.uint8)
    colour = np.zeros((4, 4, 3), np.uint8)
    assert image_kind(encode(grey.astype(np.uint16))) == "PNG, 16-bit grey"
    assert image_kind(encode(colour, "TIFF")) == "TIFF, 8-bit colour"
    assert image_kind(encode(colour, "JPEG")) == "JPEG, 8-bit colour"
    assert image_kind(colour.astype(np.float32)) == "array, float32, 3 channels"
    assert image_kind(b"") == "no image that can be opened"


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="no images to show"):
        contact_sheet({"a": []})


def test_real_chest_x_rays(inspect, real_data):
    out = inspect(real_data / "cxr_kermany_224" / "split.csv")
    assert "images     1,800  524   624" in out and "patients   1,514  468   427" in out
    assert "kinds: JPEG, 8-bit colour (2,948)" in out
    assert "nearly the same pixels in two splits: none" in out
    assert any(line.startswith("patients in several splits: 224: 'N0439'") for line in out)
