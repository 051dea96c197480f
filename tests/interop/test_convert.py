"""The command `python -m medmamba_jax.convert`, as a user runs it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from medmamba_jax.interop import read_state_dict, write_state_dict


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "medmamba_jax.convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )


def assert_error(result, text):
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert text in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


@pytest.fixture
def block():
    """One block will do for a command; replaces the fixture that runs both."""
    return "ss_conv_ssm"


@pytest.fixture
def source(state_dict, tmp_path):
    path = tmp_path / "in.safetensors"
    write_state_dict(state_dict, path)
    return path


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_to_torch_and_back(source, state_dict, tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed (extra: torch)")
    middle, back = tmp_path / "middle.pth", tmp_path / "back.safetensors"
    assert run(source, middle).returncode == 0
    assert run(middle, back).returncode == 0
    assert_same(read_state_dict(middle), state_dict)
    assert_same(read_state_dict(back), state_dict)


def test_it_prints_the_architecture_and_overwrites_only_when_told(source, state_dict, tmp_path):
    target = tmp_path / "out.safetensors"
    result = run(source, target)
    assert (result.returncode, result.stderr) == (0, "")
    trained = {k: x for k, x in state_dict.items() if "running" not in k and "tracked" not in k}
    for line in (
        "depths: (1, 2)",
        "dims: (8, 16)",
        "num_classes: 5",
        "in_channels: 3",
        "block: ss_conv_ssm",
        "patch_size: 4",
        "d_state: 3",
        f"parameters: {sum(x.size for x in trained.values()):,}",
        f"written: {target}",
    ):
        assert line in result.stdout.splitlines()
    assert_same(read_state_dict(target), state_dict)

    target.write_bytes(b"precious")
    assert_error(run(source, target), "--overwrite")
    assert target.read_bytes() == b"precious"
    assert run(source, target, "--overwrite").returncode == 0
    assert_same(read_state_dict(target), state_dict)


def test_the_input_is_never_overwritten(source, state_dict):
    result = run(source, source.parent / "." / source.name, "--overwrite")
    assert_error(result, "is the input too")
    assert_same(read_state_dict(source), state_dict)


def test_weights_that_do_not_fit_are_refused(source, state_dict, tmp_path):
    del state_dict["head.bias"], state_dict["layers.0.downsample.norm.bias"]
    write_state_dict(state_dict, source)
    result = run(source, tmp_path / "out.safetensors")
    assert_error(result, "missing: head.bias")
    assert "missing: layers.0.downsample.norm.bias" in result.stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("gone.safetensors", "out.safetensors"), "gone.safetensors"),
        (("in.safetensors", "out.onnx"), "out.onnx"),
        (("in.safetensors", "no/folder.safetensors"), "is not a folder"),
    ],
)
def test_paths_that_cannot_be(source, tmp_path, names, text):
    assert_error(run(*(tmp_path / name for name in names)), text)
