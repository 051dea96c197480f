"""What `medmamba explain` writes."""

import csv

import numpy as np
import pytest
from PIL import Image

import medmamba_jax as mm
from medmamba_jax import cli
from medmamba_jax.explanation.files import _written
from medmamba_jax.explanation.pictures import limit_of, overlay
from medmamba_jax.files import make_output_folder


@pytest.fixture
def folder(tmp_path, images):
    """Four images with equal names in two folders, one of them wide, and one that is no image."""
    split = images.splits["test"]
    for row in range(4):
        path = tmp_path / "scans" / str(row % 2) / f"a b{row // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = split.read(row)
        Image.fromarray(pixels if row else pixels[:16]).save(path)
    (tmp_path / "scans" / "text.png").write_text("no image")
    return tmp_path / "scans"


def explain(run, folder, output, *options):
    return cli.main(["explain", str(run), str(folder), f"--output={output}", *options])


def test_maps_pictures_a_table_and_a_sheet(trained, folder, tmp_path, capsys, one_device):
    output = tmp_path / "new" / "maps"
    assert explain(trained[0], folder, output, "--class=bright") == 1
    printed = capsys.readouterr()
    assert printed.out == f"4 images in {output}\n"
    assert printed.err.startswith(f"not explained: {folder}/text.png: ")
    stems = [f"000{n}_a_b{k}" for n, k in ((1, 0), (2, 1), (3, 0), (4, 1))]
    names = {f"{stem}{ending}" for stem in stems for ending in (".npy", ".png")}
    assert {path.name for path in output.iterdir()} == names | {"maps.csv", "sheet.png"}
    with (output / "maps.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    predictor = mm.load_run(trained[0]).predictor
    found = mm.explain(predictor, [row["path"] for row in rows], class_name="bright")
    for row, heat, p in zip(rows, found.maps, found.probabilities, strict=True):
        np.testing.assert_array_equal(np.load(output / row["map"]), heat)
        assert row["predicted"] == found.class_names[p.argmax()] and row["class"] == "bright"
        assert float(row["p_class"]) == pytest.approx(p[1], rel=1e-4)
    # The first image is wide, and its picture, too. A legend is below.
    heights = []
    for row in rows:
        with Image.open(output / row["picture"]) as picture:
            heights.append(picture.height)
    assert heights[0] < heights[1] == heights[2]
    # Nothing is written over.
    assert explain(trained[0], folder, output) == 2
    assert "is not empty; give a new folder" in capsys.readouterr().err


def test_only_files_of_the_earlier_call_are_replaced(tmp_path):
    written = ["0001_a.npy", "0001_a.png", "sheet.png", "sheet_2.png", "mean.npy", "mean.png"]
    own = ["2024_figure.png", "sheet_for_paper.png", "2024_of_mine.npy", "sheet_2b.png"]
    output = tmp_path / "out"
    output.mkdir()
    for path in [*(output / name for name in (*written, *own)), tmp_path / "other.npy"]:
        path.write_text("")
    header = "path,predicted,p_predicted,class,p_class,map,picture\n"
    rows = "a.png,x,1,,,0001_a.npy,0001_a.png\nb.png,x,1,,,../other.npy,\n"
    (output / "maps.csv").write_text(header + rows)
    make_output_folder(output, "maps.csv", _written, overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == sorted(own)
    assert (tmp_path / "other.npy").exists()


@pytest.mark.slow
def test_the_receptive_field_has_a_mean(trained, folder, tmp_path, one_device, capsys):
    explain(trained[0], folder, tmp_path / "out", "--method=receptive_field", "--stage=0")
    maps = [np.load(path) for path in sorted((tmp_path / "out").glob("0*.npy"))]
    assert len(maps) == 4
    np.testing.assert_allclose(np.load(tmp_path / "out" / "mean.npy"), np.mean(maps, 0), rtol=1e-5)
    assert (tmp_path / "out" / "mean.png").is_file()


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("--class=<b>", "no class '<b>'"),
        ("--stage=9", "2 stages"),
        (None, "has files but no maps.csv, which a finished call writes last"),
    ],
)
def test_a_mistake_is_found_before_an_image_is_read(
    trained, folder, tmp_path, capsys, monkeypatch, option, problem
):
    monkeypatch.setattr("medmamba_jax.explanation.files.decoded_batches", None)
    output = tmp_path / "out" if option else folder
    assert explain(trained[0], folder, output, *([option] if option else [])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and problem in error and error.count("\n") == 1
    assert option is None or not (tmp_path / "out").exists()


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_a_map_lies_where_the_model_saw_the_image(fit):
    """A bright spot is found again where it was, and what was cut off is NaN."""
    preprocessing = mm.Preprocessing((32, 32), 1, "bilinear", mean=(0.0,), std=(1.0,), fit=fit)
    pixels = np.zeros((40, 100, 1), np.uint8)
    pixels[10:20, 40:60] = 255
    seen = preprocessing.resize(pixels)[..., 0].astype(np.float32)
    back = preprocessing.unresize(seen, (40, 100))
    assert back.shape == (40, 100) and back.dtype == np.float32
    assert back[15, 50] > 150 and np.nanmax(back[30:]) < 30
    assert np.isnan(back).any() == (fit == "crop")
    if fit == "crop":
        np.testing.assert_array_equal(np.isnan(back).all(0), ~np.isin(range(100), range(30, 70)))
    rows, columns = np.nonzero(np.nan_to_num(back) > 100)
    assert abs(rows.mean() - 14.5) < 1 and abs(columns.mean() - 49.5) < 1.5


def test_colours_of_an_overlay():
    """Where the map is 0 the image shows, and where it is NaN it is grey."""
    pixels = np.full((400, 400, 1), 90, np.uint8)
    heat = np.zeros((400, 400), np.float32)
    heat[:100], heat[100:200], heat[200:300] = 5, -5, np.nan
    assert limit_of(heat) == 5 and limit_of(np.zeros((4, 4))) == 1
    signed = np.asarray(overlay(pixels, heat, "occlusion"))
    assert (signed[350, 200] == 90).all() and (signed[250, 200] == 128).all()
    red, _, blue = signed[50, 200].astype(int)
    assert red > blue + 30
    red, _, blue = signed[150, 200].astype(int)
    assert blue > red + 30
    unsigned = np.asarray(overlay(pixels, heat, "grad_cam"))
    assert (unsigned[150, 200] == 90).all() and unsigned[50, 200].max() > 150
