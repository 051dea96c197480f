"""The subcommand `convert`, as `medmamba convert IN OUT` calls it."""

import argparse

import numpy as np
import pytest

from medmamba_jax.cli import MISTAKES
from medmamba_jax.cli.convert import add_convert
from medmamba_jax.errors import UserError
from medmamba_jax.interop import read_state_dict, write_state_dict


def run(*arguments):
    """Runs `medmamba convert` with these arguments, in this process."""
    parser = argparse.ArgumentParser()
    add_convert(parser.add_subparsers())
    options = parser.parse_args(["convert", *map(str, arguments)])
    print(options.run(options))


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


def test_to_torch_and_back(torch, source, state_dict, tmp_path):
    middle, back = tmp_path / "middle.pth", tmp_path / "back.safetensors"
    run(source, middle)
    run(middle, back)
    assert_same(read_state_dict(middle), state_dict)
    assert_same(read_state_dict(back), state_dict)


def test_it_prints_the_architecture_and_overwrites_only_on_request(
    source, state_dict, tmp_path, capsys
):
    target = tmp_path / "out.safetensors"
    run(source, target)
    printed = capsys.readouterr()
    assert printed.err == ""
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
        assert line in printed.out.splitlines()
    assert_same(read_state_dict(target), state_dict)

    target.write_bytes(b"precious")
    with pytest.raises(MISTAKES, match="--overwrite"):
        run(source, target)
    assert target.read_bytes() == b"precious"
    run(source, target, "--overwrite")
    assert_same(read_state_dict(target), state_dict)


def test_the_input_is_never_overwritten(source, state_dict):
    with pytest.raises(MISTAKES, match="is the input too"):
        run(source, source.parent / "." / source.name, "--overwrite")
    assert_same(read_state_dict(source), state_dict)


def test_weights_that_do_not_fit_are_refused(source, state_dict, tmp_path):
    del state_dict["head.bias"], state_dict["layers.0.downsample.norm.bias"]
    write_state_dict(state_dict, source)
    with pytest.raises(UserError, match=r"missing: head\.bias") as caught:
        run(source, tmp_path / "out.safetensors")
    assert "missing: layers.0.downsample.norm.bias" in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("gone.safetensors", "out.safetensors"), "gone.safetensors"),
        (("in.safetensors", "out.onnx"), "out.onnx"),
        (("in.safetensors", "no/folder.safetensors"), "is not a folder"),
        ((".", "out.safetensors"), "leaves it by `medmamba export"),
    ],
)
def test_paths_that_cannot_be(source, tmp_path, names, text):
    with pytest.raises(MISTAKES, match=text):
        run(*(tmp_path / name for name in names))


def test_a_failed_write_leaves_the_old_file(source, tmp_path, monkeypatch):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MISTAKES, match="No space left"):
        run(source, target, "--overwrite")
    assert target.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"in.safetensors", "out.safetensors"}
