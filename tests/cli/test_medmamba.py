"""The console command `medmamba`, in this process."""

import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from medmamba_jax import cli
from medmamba_jax.cli import _parser
from medmamba_jax.cli.inspect import in_step
from medmamba_jax.cli.train import QUICKSTART, with_config_file
from medmamba_jax.exports import FORMATS
from medmamba_jax.training.augmentation import DEVICE_POLICIES


def test_evaluate_reads_a_run_from_any_folder(trained, images, monkeypatch, capsys):
    """A run on a caller's own images names none that could be found again."""
    assert cli.main(["evaluate", str(trained[0])]) == 2
    assert "data.path" in capsys.readouterr().err


def test_a_setting_that_may_change_is_taken(trained, capsys):
    assert cli.main(["evaluate", str(trained[0]), "--data.path=nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nowhere" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["convert", "nowhere.safetensors", "out.safetensors"], "nowhere.safetensors"),
        (["inspect", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, problem, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and problem in error and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["fly"], ["evaluate"]])
def test_a_wrong_command_line_names_the_help(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2 and "--help" in capsys.readouterr().err


def test_list_shows_the_public_sets(capsys):
    assert cli.main(["list"]) == 0
    assert "breastmnist" in capsys.readouterr().out


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def broken(folder, batch_size):
        raise ValueError("not the user's mistake")

    monkeypatch.setattr("medmamba_jax.cli.evaluate.load_run", broken)
    with pytest.raises(ValueError, match="not the user's mistake"):
        cli.main(["evaluate", "runs/x"])


def test_a_config_file_is_found_in_the_current_folder_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (here,) = with_config_file(["prog", f"--config={QUICKSTART}:testing"])[1:]
    assert here.endswith("configs/quickstart.py:testing") and not here.startswith(
        "--config=configs"
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").write_text("")
    assert with_config_file(["prog"])[1] == "--config=configs/quickstart.py"
    typed = with_config_file(["prog", "--config", QUICKSTART, "--workdir=x"])
    assert typed == ["prog", "--config=configs/quickstart.py", "--workdir=x"]


@pytest.mark.slow
def test_the_wheel_has_the_configs_and_the_command(tmp_path, pytestconfig):
    """Built from this checkout, and installed without what it needs into a folder."""
    pip = [sys.executable, "-m", "pip"]
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*wheel, str(pytestconfig.rootpath)], check=True)
    (built,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(built).namelist()
    for name in (
        "configs/xray.py",
        "__init__.pyi",
        "py.typed",
        "data/__init__.pyi",
        "cli/train.py",
        "pretrained/xray_nano.md",
        "demo/page.html",
    ):
        assert f"medmamba_jax/{name}" in names
    (points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "medmamba = medmamba_jax.__main__:main" in zipfile.ZipFile(built).read(points).decode()


def test_a_missing_argument_shows_all_in_their_order(capsys):
    with pytest.raises(SystemExit):
        cli.main(["predict", "scan.png"])  # without a model
    assert "PATH (write medmamba predict RUN PATH); see" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["export", "runs/xray"])
    written = f"RUN --to={'|'.join(FORMATS)} --output=FILE); see"
    assert f"(write medmamba export {written}" in capsys.readouterr().err


def test_inspect_draws_what_the_step_does():
    options = _parser(["inspect"]).parse_args(["inspect", "x", "--augment", "strong"])
    assert options.augment == "strong"
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    expected = jax.jit(DEVICE_POLICIES["light"])(jax.random.key(3), images).images
    np.testing.assert_array_equal(in_step("light", images, 3), expected)
    assert not np.array_equal(in_step("light", images, 4), expected)
