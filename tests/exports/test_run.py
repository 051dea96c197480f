"""`medmamba export RUN`: the best checkpoint of a run, checked on the run's validation images."""

import csv
import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
from golden import recipe_model
from PIL import Image

import medmamba_jax as mm
from medmamba_jax import cli
from medmamba_jax.models import split_model
from medmamba_jax.runs import CheckpointStore, Progress, Run, RunDescription
from medmamba_jax.runs.sources import validation_images


@pytest.fixture
def run(tmp_path, predictor):
    """A run on a folder of images, as training leaves it, but for the checkpoints."""
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    workdir = tmp_path / "run"
    workdir.mkdir()
    with (workdir / "split.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "split", "label", "group", "content"])
        for name in ("a", "b"):
            for i in range(6):
                split = "val" if i in (1, 4, 5) else "train"
                table.writerow([f"{name}/{i}.png", split, name, "", ""])
    config = mm.Config()
    data = dataclasses.replace(config.data, path=str(tmp_path / "images"))
    RunDescription(
        config=dataclasses.replace(config, data=data).to_dict(),
        model=predictor.model,
        preprocessing=predictor.preprocessing,
        class_names=predictor.class_names,
        task="multiclass",
        best_metric="auc",
        dataset="none",
        images_sha256={},
        synthetic=True,
    ).write(workdir)
    return Run(workdir, RunDescription.read(workdir))


def test_the_validation_images_are_found_without_a_pass_over_all(run, tmp_path):
    found = validation_images(run)
    assert found.names == tuple(f"{name}/{i}.png" for name in ("a", "b") for i in (1, 4, 5))
    expected = np.random.default_rng(4).integers(0, 256, (32, 32), np.uint8)
    pixels = run.description.preprocessing.decode(found.read(1))
    np.testing.assert_array_equal(pixels[..., 0], expected)

    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no folder or file"):
        validation_images(run)


def test_a_set_is_not_downloaded_for_a_check(run, monkeypatch):
    monkeypatch.setattr("medmamba_jax.runs.sources.find_images", None)
    run.description.config["data"] |= {"path": "", "name": "breastmnist"}
    run.description.config["data"]["public"]["data_dir"] = str(run.workdir)
    with pytest.raises(mm.DataUnavailableError, match="'breastmnist' is not stored"):
        validation_images(run)


@pytest.mark.slow
def test_the_best_checkpoint_leaves_the_folder(run, tmp_path, capsys):
    model = recipe_model(run.description.model, seed=3)
    params, statistics, _ = split_model(model)
    parts = {"params": params, "statistics": statistics}
    with CheckpointStore(run.workdir / "checkpoints") as store:
        store.save(Progress(epoch=1, best_epoch=1), parts)
        worse = jax.tree.map(lambda x: x + 1 if x.dtype == np.float32 else x, parts)
        store.save(Progress(epoch=2, best_epoch=1), worse)
    unreadable = tmp_path / "images" / "a" / "1.png"
    unreadable.write_bytes(b"no image")
    path = tmp_path / "best.safetensors"
    command = ["export", str(run.workdir), "--to=safetensors", f"--output={path}"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert f"written: {path}" in printed and "on 4 validation images of the run" in printed
    assert f"not read: {unreadable}: " in printed
    tensors, expected = safetensors.numpy.load_file(path), mm.to_torch_state_dict(model)
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)

    for file in (tmp_path / "images").rglob("*.png"):
        file.write_bytes(b"no image")
    assert cli.main([*command, "--overwrite"]) == 0
    printed = capsys.readouterr().out
    assert "on 4 images of noise that the program drew (no image of the run can be read)" in printed
    assert printed.count("not read: ") == 4 and "not read: 3 more images" in printed

    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert cli.main([*command, "--overwrite", "--licence=CC BY 4.0"]) == 0
    printed = capsys.readouterr().out
    assert "on 4 images of noise that the program drew (the run's own cannot be read" in printed

    again = tmp_path / "again.safetensors"  # an exported file is exported, with its facts
    assert cli.main(["export", str(path), "--to=safetensors", f"--output={again}"]) == 0
    assert again.read_bytes() == path.read_bytes()
