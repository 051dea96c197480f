"""What an exported file holds and says, and what is read back; formats with programs are beside."""

import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from scipy.special import softmax

import medmamba_jax as mm
from medmamba_jax import cli
from medmamba_jax.exports import FORMATS, KEY, Meaning, read_exported
from medmamba_jax.interop import weights_to_state_dict
from medmamba_jax.models.structure import by_name
from medmamba_jax.pretrained import FOLDER, SHIPPED, shipped_file
from medmamba_jax.runs import load_trained


def metadata(path):
    with safetensors.safe_open(path, "numpy") as file:
        return file.metadata()


def rewritten(path, target, change):
    """Writes a copy whose meaning `change` has changed, as JSON or as text."""
    text = change(metadata(path)[KEY])
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), target, {KEY: text})
    return target


def changed(**values):
    return lambda text: json.dumps(json.loads(text) | values)


def test_the_file_has_official_names_and_says_what_it_means(predictor, exported):
    official = weights_to_state_dict(predictor.model, predictor.params, predictor.statistics)
    tensors = safetensors.numpy.load_file(exported)
    assert tensors.keys() == official.keys() and "head.weight" in tensors
    for name, tensor in official.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)

    said = json.loads(metadata(exported)[KEY])
    assert said["class_names"] == ["a", "=b", "ç"] and said["task"] == "multiclass"
    assert said["preprocessing"] == {
        "image_size": [32, 40],
        "channels": 1,
        "resize_filter": "bicubic",
        "mean": [0.4],
        "std": [0.3],
        "window": [0, 900],
        "frame": 0,
        "fit": "pad",
        "max_pixels": 80_000_000,
    }
    assert said["calibration"]["temperature"] == 1.7
    assert said["licence"] == "CC BY 4.0" and said["version"] == mm.__version__
    assert said["model"]["depths"] == [1, 1] and said["model"]["dims"] == [8, 16]
    assert said["training"] == {
        "dataset": "blobs",
        "synthetic": True,
        "augmentation": "light_flip",
        "epoch": 3,
    }


def test_it_is_read_back_to_the_last_bit(predictor, exported):
    read = mm.load_predictor(exported)
    for field in ("model", "preprocessing", "class_names", "task", "calibration"):
        assert getattr(read, field) == getattr(predictor, field), field
    for part in ("params", "statistics"):
        before, now = by_name(getattr(predictor, part)), by_name(getattr(read, part))
        assert before.keys() == now.keys()
        for name, tensor in before.items():
            np.testing.assert_array_equal(now[name], tensor, err_msg=name)
    assert load_trained(exported).training.augmentation == "light_flip"


def test_settings_of_one_machine_stay_behind(predictor):
    here = dataclasses.replace(predictor.model, scan_implementation="pallas_gpu", remat=True)
    here = dataclasses.replace(here, compute_dtype="bfloat16")
    meaning = Meaning.of(dataclasses.replace(predictor, model=here))
    assert meaning.model == predictor.model
    read = Meaning.from_json(meaning.to_json(), "x")
    assert read == meaning


@pytest.mark.slow
def test_the_command_predicts_with_an_exported_file_and_a_shipped_model(
    exported, predictor, tmp_path, capsys, monkeypatch, exact_products, training
):
    pixels = np.random.default_rng(1).integers(0, 256, (4, 32, 40), np.uint8)
    for i, image in enumerate(pixels):
        np.save(tmp_path / f"{i}.npy", image)
    monkeypatch.setitem(SHIPPED, "test-model", str(exported))
    split = mm.LabelledImages(pixels[..., None], np.zeros(4, int))
    expected = softmax(predictor.logits(split).astype(float), axis=1)
    path = tmp_path / "checked.safetensors"
    found = mm.export(predictor, "safetensors", path, training=training, licence="CC BY 4.0")
    assert found.files == (path,) and found.images == 4 and found.drawn
    assert found.difference <= 1e-6 and path.read_bytes() == exported.read_bytes()
    for source in (str(path), "test-model"):
        output = tmp_path / f"{pathlib.Path(source).stem}.jsonl"
        arguments = ["predict", source, str(tmp_path / "*.npy"), f"--output={output}"]
        assert cli.main([*arguments, "--batch-size=4"]) == 0
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        table = [[row[f"p_{name}"] for name in predictor.class_names] for row in rows]
        np.testing.assert_array_equal(table, expected)
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and all(note.startswith("note: the model knows") for note in notes)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: "{", "JSONDecodeError"),
        (lambda text: "[]", "TypeError"),
        (changed(format=2), "reads up to 1): install a later version\n"),
        (changed(task="fortune"), "a predictor's task must be one of"),
        (changed(class_names=["a"]), "has 1 names"),
        (changed(model={"depths": "many"}), "depths must be a sequence"),
        (changed(model={"colour": 1}), "TypeError"),
        (changed(preprocessing={}), "preprocessing must have the keys"),
        (changed(calibration=[1]), "calibration"),
        (changed(training={"epoch": 1}), "TypeError"),
        (changed(surprise=1), "TypeError"),
    ],
)
def test_damaged_metadata_is_one_line(exported, tmp_path, capsys, change, problem):
    path = rewritten(exported, tmp_path / "x.safetensors", change)
    assert cli.main(["predict", str(path), "x.png"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and problem in error and error.count("\n") == 1
    assert str(path) in error or problem in ("a predictor's task must be one of", "has 1 names")


def test_weights_that_do_not_fit_what_the_file_says(exported, tmp_path, capsys):
    change = changed(model={"depths": [1], "dims": [8], "num_classes": 3, "in_channels": 1})
    path = rewritten(exported, tmp_path / "x.safetensors", change)
    assert cli.main(["predict", str(path), "x.png"]) == 2
    error = capsys.readouterr().err
    assert "unexpected: layers.1." in error and error.count("\n") == 1


def test_a_foreign_file_is_told_how_it_can_be_used(exported, tmp_path):
    path = tmp_path / "official.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(exported), path)
    with pytest.raises(mm.UserError, match=re.escape(f"use mm.load_torch({str(path)!r}, class_n")):
        mm.load_predictor(path)


def test_official_weights_become_a_predictor(exported, predictor):
    facts = {"class_names": predictor.class_names, "preprocessing": predictor.preprocessing}
    read = mm.load_torch(exported, **facts)
    assert isinstance(read, mm.Predictor) and read.model == predictor.model
    config, model = mm.load_torch(exported)
    assert config == predictor.model and isinstance(model, mm.MedMamba)
    for name in facts:
        with pytest.raises(mm.UserError, match="needs both class_names and preprocessing"):
            mm.load_torch(exported, **{name: facts[name]})


def test_unknown_sources_are_told_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no xray-mega: .*\(xray-nano\)"):
        mm.load_predictor("xray-mega")
    (tmp_path / "xray-nano").mkdir()  # a user's own folder comes first
    with pytest.raises(FileNotFoundError, match="xray-nano holds no run"):
        mm.load_predictor("xray-nano")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_have_a_card_and_are_small(name):
    assert (FOLDER / SHIPPED[name]).with_suffix(".md").is_file()
    try:
        path = shipped_file(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert path.stat().st_size <= 1.5e6
    read, meaning = read_exported(path)
    assert meaning.training is not None and "CC BY 4.0" in meaning.licence
    assert len(read.class_names) == 2


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_that_computes_something_else_is_not_written(predictor, tmp_path, monkeypatch, to):
    """A fake format shows that a file is written only if the logits differ little."""
    row = FORMATS[to]
    path = tmp_path / f"model{row.endings[0]}"
    path.write_bytes(b"an older export")
    expected = np.zeros((4, 3), np.float32)
    monkeypatch.setattr(mm.Predictor, "logits", lambda self, images: expected)
    for shift, written in ((2e-5, False), (np.nan, False), (5e-6, True)):
        fake = dataclasses.replace(
            row,
            encode=lambda *_: b"content",
            run=lambda *_, shift=shift: expected + np.float32(shift),
            require=lambda path: None,
        )
        monkeypatch.setitem(FORMATS, to, fake)
        if written:
            mm.export(predictor, to, path)
        else:
            with pytest.raises(mm.UserError, match="is not written: its logits differ by"):
                mm.export(predictor, to, path)
        assert path.read_bytes() == (b"content" if written else b"an older export")
        beside = [file.name for file in tmp_path.iterdir() if file != path]
        assert beside == ([f"{path.name}.json"] if written and row.json_beside else [])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--to=onnx", "--output=x.pth"], "must end in .onnx for the format onnx"),
        (["--to=safetensors", "--output=no/x.safetensors"], "no is not a folder"),
        (["--to=safetensors", "--output=there.safetensors"], "--overwrite"),
        (["--to=safetensors", "--output=new.safetensors"], "there is no gone: give a run's"),
    ],
)
def test_mistakes_of_the_command(tmp_path, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").write_bytes(b"")
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], require=print))
    assert cli.main(["export", "gone", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and problem in error and error.count("\n") == 1


def test_a_format_without_its_package(predictor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r'pip install "medmamba-jax\[onnx\]"'):
        mm.export(predictor, "onnx", tmp_path / "x.onnx")
