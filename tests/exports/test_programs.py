"""Exported files as other programs use them: PyTorch, JAX without this package, onnxruntime."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from closeness import assert_close

import medmamba_jax as mm
from medmamba_jax.exports import FORMATS, KEY, Meaning

PIXELS = np.random.default_rng(2).integers(0, 256, (5, 32, 40, 1), np.uint8)


def in_pytorch(module, predictor):
    """Logits by an independent PyTorch model, in float64."""
    import torch

    settings = predictor.preprocessing
    images = (PIXELS.transpose(0, 3, 1, 2) / 255 - settings.mean[0]) / settings.std[0]
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


@pytest.fixture
def expected(torch, predictor):
    """Logits of `PIXELS` by a PyTorch model, which has never seen the exported file."""
    import torch_reference

    state_dict = mm.to_torch_state_dict(predictor.module())
    module = torch_reference.MedMamba(predictor.model).double()
    module.load_state_dict({name: torch.from_numpy(x) for name, x in state_dict.items()})
    return in_pytorch(module.eval(), predictor)


@pytest.mark.slow
def test_an_official_user_loads_the_torch_file(torch, predictor, tmp_path, exact_products):
    import torch_reference

    path = tmp_path / "model.pth"
    found = mm.export(predictor, "torch", path)
    assert [file.name for file in found.files] == ["model.pth", "model.pth.json"]
    said = json.loads(found.files[1].read_text(encoding="utf-8"))
    assert said["class_names"] == ["a", "=b", "ç"] and said["preprocessing"]["mean"] == [0.4]

    module = torch_reference.MedMamba(predictor.model)
    module.load_state_dict(torch.load(path, weights_only=True))
    logits = in_pytorch(module.double().eval(), predictor)
    images = mm.LabelledImages(PIXELS[:4], np.zeros(4, int))
    assert_close(predictor.logits(images), logits[:4], 1e-5, "logits")


@pytest.mark.slow
def test_stablehlo_runs_where_this_package_is_not(predictor, expected, tmp_path):
    """In a process that imports JAX and NumPy alone, with batches of one and of five."""
    path = tmp_path / "model.stablehlo"
    mm.export(predictor, "stablehlo", path)
    np.save(tmp_path / "images.npy", PIXELS)
    program = """
import sys
sys.modules["medmamba_jax"] = sys.modules["flax"] = None
import jax, jax.export, numpy as np
model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
assert model.platforms == ("cpu", "cuda", "tpu"), model.platforms
images = np.load("images.npy")
logits, probabilities = model.call(images)
one, _ = model.call(images[:1])
np.savez("out.npz", logits=logits, probabilities=probabilities, one=one)
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    with np.load(tmp_path / "out.npz") as file:
        found = dict(file)
    assert_close(found["logits"], expected, 1e-5, "logits")
    assert_close(found["one"], expected[:1], 1e-5, "a batch of one")
    powers = np.exp(expected)
    assert_close(found["probabilities"], powers / powers.sum(1, keepdims=True), 1e-5, "p")
    assert json.loads((tmp_path / "model.stablehlo.json").read_text())["task"] == "multiclass"


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # of jax2onnx
def test_onnx_runs_in_onnxruntime(predictor, expected, tmp_path, capfd):
    pytest.importorskip("jax2onnx", reason="jax2onnx is not installed (extra: onnx)")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra: onnx)")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is missing (extra: onnx)")
    path = tmp_path / "model.onnx"
    mm.export(predictor, "onnx", path)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert "Removing initializer" not in capfd.readouterr().err
    (images,) = session.get_inputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape[1:] == [32, 40, 1] and isinstance(images.shape[0], str)
    assert [output.name for output in session.get_outputs()] == ["logits", "probabilities"]
    logits, probabilities = session.run(None, {"images": PIXELS})
    assert_close(logits, expected, 1e-5, "logits")
    assert_close(session.run(None, {"images": PIXELS[:1]})[0], expected[:1], 1e-5, "one")
    powers = np.exp(expected)
    assert_close(probabilities, powers / powers.sum(1, keepdims=True), 1e-5, "probabilities")
    said = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
    assert said["class_names"] == ["a", "=b", "ç"] and said["calibration"]["temperature"] == 1.7


@pytest.mark.parametrize(
    "to",
    [
        "safetensors",
        "torch",
        pytest.param("stablehlo", marks=pytest.mark.slow),
        pytest.param("onnx", marks=pytest.mark.nightly),
    ],
)
def test_a_file_names_no_file_of_the_machine_that_exported_it(predictor, training, tmp_path, to):
    row, path = FORMATS[to], tmp_path / f"x{FORMATS[to].endings[0]}"
    try:
        row.require(path)
    except ImportError as error:
        pytest.skip(str(error))
    meaning = Meaning.of(predictor, training)
    content = row.encode(predictor, meaning, path) + meaning.to_json().encode()
    folders = [tmp_path, pathlib.Path.cwd(), pathlib.Path.home(), pathlib.Path(sys.prefix)]
    for text in ("medmamba_jax/", "site-packages", *(f"{folder}/" for folder in folders)):
        assert text.encode() not in content, text
