"""Weight files: formats, wrappers, and files that must not be trusted."""

import argparse
import builtins
import gzip
import pathlib
import pickle
import tarfile
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from drawing import forbid_drawing
from flax import nnx

import medmamba_jax as mm
from medmamba_jax.errors import UserError
from medmamba_jax.interop import (
    check_readable,
    read_state_dict,
    read_weights,
    weights_to_state_dict,
    write_state_dict,
)
from medmamba_jax.models import evaluation_graphdef, split_model


@pytest.fixture
def no_torch(monkeypatch):
    """Importing torch fails, whether or not it is installed."""
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def as_tensors(torch, state_dict):
    return {name: torch.from_numpy(x.copy()) for name, x in state_dict.items()}


def test_safetensors_needs_no_torch(no_torch, state_dict, block, tmp_path):
    path = tmp_path / "weights.safetensors"
    write_state_dict(state_dict, path)
    config, model = mm.load_torch(path, drop_path_rate=0.25)
    assert config.block == block
    assert (config.depths, config.dims, config.num_classes) == ((1, 2), (8, 16), 5)
    assert config.drop_path_rate == 0.25
    assert model.config is config
    assert model.deterministic  # evaluation mode
    assert_same(mm.to_torch_state_dict(model), state_dict)


def test_loaded_models_compute(no_torch, state_dict, tmp_path, model):
    path = tmp_path / "weights.safetensors"
    write_state_dict(state_dict, path)
    images = np.random.default_rng(1).standard_normal((2, 9, 8, 3)).astype(np.float32)
    _, loaded = mm.load_torch(path)
    mm.load_torch_state_dict(model, state_dict)
    model.eval()
    np.testing.assert_array_equal(loaded(images), model(images))


def test_transposed_arrays_are_written_as_they_read(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_state_dict({"x": array}, tmp_path / "x.safetensors")
    loaded = safetensors.numpy.load_file(tmp_path / "x.safetensors")["x"]
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_torch_files(torch, state_dict, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save(as_tensors(torch, state_dict), path)
    _, model = mm.load_torch(path)
    assert_same(mm.to_torch_state_dict(model), state_dict)

    ours = tmp_path / f"ours{suffix}"
    write_state_dict(mm.to_torch_state_dict(model), ours)
    loaded = torch.load(ours, weights_only=True)
    assert_same({name: x.numpy() for name, x in loaded.items()}, state_dict)


def nested(key):
    return lambda weights: {
        "epoch": 3,
        "best": 0.5,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        key: weights,
    }


@pytest.mark.parametrize(
    "wrap",
    [
        nested("model"),
        nested("state_dict"),
        nested("model_state_dict"),
        lambda weights: {"module." + name: x for name, x in weights.items()},
        lambda weights: nested("model")({"module." + name: x for name, x in weights.items()}),
        lambda weights: nested("model")(nested("state_dict")(weights)),
    ],
    ids=["model", "state_dict", "model_state_dict", "parallel", "parallel_in_model", "twice"],
)
def test_wrappers_of_training_scripts(torch, state_dict, tmp_path, wrap):
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(as_tensors(torch, state_dict)), path)
    assert_same(read_state_dict(path), state_dict)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_torch_files_are_read_as_float32(torch, state_dict, tmp_path, dtype):
    path = tmp_path / "half.pth"
    tensors = as_tensors(torch, state_dict)
    half = {
        k: x.to(getattr(torch, dtype)) if x.is_floating_point() else x for k, x in tensors.items()
    }
    torch.save(half, path)
    expected = {k: x.float() if x.is_floating_point() else x for k, x in half.items()}
    assert_same(read_state_dict(path), {k: x.numpy() for k, x in expected.items()})


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(torch, state_dict, tmp_path, writer):
    path, ran = tmp_path / "evil.pth", tmp_path / "ran"
    content = {"model": as_tensors(torch, state_dict), "hook": Touch(ran)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(Touch(ran), protocol=2))
    with pytest.raises(UserError, match="which loading would run as code"):
        mm.load_torch(path)
    assert not ran.exists()
    if writer == "torch":
        torch.load(path, weights_only=False)
        assert ran.exists()  # the trap works


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_torch_files(torch, tmp_path, content):
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.pth"):
        mm.load_torch(path)


@pytest.mark.parametrize(
    "content",
    [{}, [1, 2], {"epoch": 3}, {"model": {"epoch": 3}}],
    ids=["empty", "list", "number", "wrapped_number"],
)
def test_files_without_tensors(torch, tmp_path, content):
    path = tmp_path / "content.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match="state_dict"):
        mm.load_torch(path)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"damaged\.safetensors is not a readable"):
        mm.load_torch(path)


@pytest.mark.parametrize("name", ["gone.pth", "gone.pt", "gone.safetensors"])
def test_missing_files(no_torch, tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        mm.load_torch(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!doctype html><html></html>", "web page"),
        (b"<html><body>404</body></html>", "web page"),
        (gzip.compress(b"weights", mtime=0), "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx"])
def test_files_of_other_kinds_are_named(no_torch, tmp_path, content, what, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=what):
        mm.load_torch(path)


def test_archives_are_named(torch, tmp_path):
    np.savez(tmp_path / "weights.npz", x=np.ones(2))
    with pytest.raises(UserError, match="zip archive"):
        mm.load_torch(tmp_path / "weights.npz")

    program = tmp_path / "program.pt"
    with zipfile.ZipFile(program, "w") as archive:  # as torch.jit.save lays it out
        for name in ("data.pkl", "constants.pkl", "code/__torch__/net.py"):
            archive.writestr(f"program/{name}", b"")
    with pytest.raises(UserError, match="TorchScript"):
        mm.load_torch(program)

    with tarfile.open(tmp_path / "weights.pth.tar", "w") as archive:
        archive.add(program, "program.pt")
    with pytest.raises(UserError, match="tar archive"):
        mm.load_torch(tmp_path / "weights.pth.tar")


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".pth.tar", ".weights", ""])
def test_safetensors_are_known_under_any_ending(no_torch, state_dict, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(safetensors.numpy.save(state_dict))
    assert check_readable(path) == "safetensors"
    read = read_state_dict(path)
    assert_same({name: read[name] for name in state_dict}, state_dict)


def test_a_pytorch_file_named_safetensors_is_read(torch, state_dict, tmp_path):
    path = tmp_path / "weights.safetensors"
    torch.save(as_tensors(torch, state_dict), path)
    assert_same(read_state_dict(path), state_dict)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_safetensors_of_other_floats(torch, state_dict, tmp_path, dtype):
    import safetensors.torch

    path = tmp_path / "weights.safetensors"
    tensors = as_tensors(torch, state_dict)
    stored = {
        k: x.to(getattr(torch, dtype)) if x.is_floating_point() else x for k, x in tensors.items()
    }
    safetensors.torch.save_file(stored, path)
    _, model = mm.load_torch(path)
    expected = {k: x.float() if x.is_floating_point() else x for k, x in stored.items()}
    assert_same(mm.to_torch_state_dict(model), {k: x.numpy() for k, x in expected.items()})


def test_float8_in_safetensors_is_refused_by_name(torch, state_dict, tmp_path):
    import safetensors.torch

    path = tmp_path / "weights.safetensors"
    tensors = as_tensors(torch, state_dict)
    tensors["head.weight"] = tensors["head.weight"].to(torch.float8_e4m3fn)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(UserError, match=r"head\.weight is a tensor of F8_E4M3"):
        mm.load_torch(path)


def test_the_object_that_is_no_tensor_is_named(torch, state_dict, tmp_path):
    path = tmp_path / "checkpoint.pth"
    args = argparse.Namespace(lr=1e-4)  # as timm's training script saves them
    torch.save({"state_dict": as_tensors(torch, state_dict), "args": args}, path)
    with pytest.raises(UserError, match=r"objects besides tensors \(argparse\.Namespace\)"):
        mm.load_torch(path)


def test_unknown_ending(state_dict, tmp_path):
    path = tmp_path / "weights.onnx"
    with pytest.raises(UserError, match=r"\.safetensors, \.pth, \.pt"):
        write_state_dict(state_dict, path)
    path.touch()
    with pytest.raises(UserError, match=r"\.safetensors, \.pth, \.pt"):
        mm.load_torch(path)


def test_missing_torch_names_the_extra(no_torch, state_dict, tmp_path):
    path = tmp_path / "weights.pth"
    path.touch()
    for call in (mm.load_torch, check_readable):
        with pytest.raises(ImportError, match="pip install torch"):
            call(path)
    with pytest.raises(ImportError, match="pip install torch"):
        write_state_dict(state_dict, path)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".pth.tar", ".weights"])
@pytest.mark.parametrize("protocol", ["zip", "pickle"])
def test_files_that_need_torch_say_so_under_any_ending(no_torch, tmp_path, suffix, protocol):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps({}, protocol=2))
    if protocol == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights/data.pkl", pickle.dumps({}))
    with pytest.raises(ImportError, match="pip install torch"):
        mm.load_torch(path)


@pytest.mark.slow
def test_loaded_models_train(no_torch, state_dict, tmp_path):
    path = tmp_path / "weights.safetensors"
    write_state_dict(state_dict, path)
    _, model = mm.load_torch(path, drop_path_rate=0.5, drop_rate=0.5)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(nnx.state(model)))
    model.train()
    images = np.ones((2, 8, 8, 3), np.float32)
    assert not np.array_equal(model(images), model(images))  # the random stream moves on


def test_weights_are_read_as_a_model_nests_them(no_torch, state_dict, tmp_path):
    path = tmp_path / "weights.safetensors"
    write_state_dict(state_dict, path)
    config, params, statistics = read_weights(path, drop_path_rate=0.25)
    assert config.drop_path_rate == 0.25
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves((params, statistics)))
    expected_params, expected_statistics, _ = split_model(mm.load_torch(path)[1])
    assert jax.tree.structure(params) == jax.tree.structure(expected_params)
    assert jax.tree.structure(statistics) == jax.tree.structure(expected_statistics)
    np.testing.assert_array_equal(params["head"]["kernel"], state_dict["head.weight"].T)
    for block in range(2):
        np.testing.assert_array_equal(
            statistics["stages"][1]["blocks"]["norm1"]["mean"][block],
            state_dict[f"layers.1.blocks.{block}.{NORM1[config.block]}.running_mean"],
        )
    assert_same(weights_to_state_dict(config, params, statistics), state_dict)


NORM1 = {"ss_conv_ssm": "conv33conv33conv11.2", "conv_ssm": "conv33conv33conv11.1"}


def test_loading_draws_no_weights(state_dict, tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    write_state_dict(state_dict, path)
    forbid_drawing(monkeypatch)
    config, params, statistics = read_weights(path)
    nnx.merge(evaluation_graphdef(config), params, statistics)
    _, model = mm.load_torch(path)
    assert_same(mm.to_torch_state_dict(model), state_dict)
