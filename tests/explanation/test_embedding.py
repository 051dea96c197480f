"""What `medmamba embed` writes."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

import medmamba_jax as mm
from medmamba_jax import cli
from medmamba_jax.data.inputs import image_paths, known_classes
from medmamba_jax.explanation.embedding import neighbours, scatter


@pytest.fixture
def folder(tmp_path, images):
    """Test images in a folder for each class, one of no class, and one that is no image."""
    split = images.splits["test"]
    for row in range(len(split)):
        path = tmp_path / "scans" / (split.label_name(row) if row else "other") / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(split.read(row)).save(path)
    (tmp_path / "scans" / "text.png").write_text("no image")
    return tmp_path / "scans"


@pytest.mark.slow
def test_features_and_their_picture(trained, folder, tmp_path, capsys, one_device, images):
    output = tmp_path / "out"
    assert cli.main(["embed", str(trained[0]), str(folder), f"--output={output}"]) == 1
    assert f"not embedded: {folder}/text.png" in capsys.readouterr().err
    found = np.load(output / "embedding.npz")
    predictor = mm.load_run(trained[0]).predictor
    order = [int(path.rpartition("/")[2].removesuffix(".png")) for path in found["path"]]
    expected = predictor.features(images.splits["test"])[order]
    np.testing.assert_allclose(found["features"], expected, rtol=1e-5, atol=1e-6)
    labels = ["" if row == 0 else images.splits["test"].label_name(row) for row in order]
    assert found["class"].tolist() == labels
    with (output / "embedding.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["x"]) for row in rows] == pytest.approx(found["tsne"][:, 0], rel=1e-4)
    with Image.open(output / "embedding.png") as picture:
        assert picture.width > 500


def test_classes_of_folders_and_tables(folder, tmp_path):
    (tmp_path / "t.csv").write_text("path,label\nscans/dark/2.png,bright\nscans/dark/4.png,grey\n")
    places = [tmp_path / "t.csv", folder]
    paths = image_paths(places)
    classes = known_classes(places, paths, ("dark", "bright"))
    found = {path.name: of_path for path, of_path in zip(paths, classes, strict=True)}
    assert found["2.png"] == "bright"  # the table comes first
    assert found["4.png"] == "dark" and found["3.png"] == "bright" and found["0.png"] == ""


def test_groups_stay_together():
    """Points of one group are nearer to each other than to the other group."""
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(0, 1, (15, 6)), rng.normal(12, 1, (15, 6))])
    places = neighbours(features.astype(np.float32))
    np.testing.assert_array_equal(places, neighbours(features.astype(np.float32)))
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(1)
    assert ((nearest < 15) == (np.arange(30) < 15)).all()


def test_names_that_matplotlib_would_read_as_formulas():
    names = ("$\\frac", "_hidden", "<b>")
    picture = scatter(np.arange(6.0).reshape(3, 2), names, names, "colour: class")
    with Image.open(io.BytesIO(picture)) as drawn:
        assert drawn.format == "PNG"
