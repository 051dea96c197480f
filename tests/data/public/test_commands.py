"""`python -m medmamba_jax.data list` and `prepare`."""

import subprocess
import sys

import pytest

from medmamba_jax.data.__main__ import main
from medmamba_jax.data.public.catalogue import CATALOGUE


@pytest.fixture
def archive(zipped, noise_png):
    names = [f"{label}/{i}.png" for label in CATALOGUE["cpn_xray"].class_names for i in range(20)]
    return zipped({name: noise_png(i) for i, name in enumerate(names)})


def test_list_shows_every_set_once(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[1:-2]]
    assert names[:4] == ["kvasir", "fetal_planes_db", "cpn_xray", "pad_ufes_20"]
    assert len(names) == 14 and all(name.endswith("mnist") for name in names[4:])
    assert next(line for line in lines if line.startswith("cpn_xray")).endswith("not known")
    assert "paper, official, patient" in next(line for line in lines if "fetal" in line)


def test_prepare_counts_the_images(tmp_path, publish, archive, capsys):
    publish("cpn_xray", archive)
    assert main(["prepare", "cpn_xray", "--data-dir", str(tmp_path)]) == 0
    table = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split() for line in table] == [
        ["class", "train", "val", "test"],
        ["COVID", "12", "2", "6"],
        ["NORMAL", "12", "2", "6"],
        ["PNEUMONIA", "12", "2", "6"],
        ["all", "36", "6", "18"],
    ]
    assert (tmp_path / "cpn_xray").is_dir()


def test_prepare_takes_what_was_fetched_by_hand(tmp_path, archive, capsys):
    (tmp_path / "by hand").mkdir()
    (tmp_path / "by hand" / "mine.zip").write_bytes(archive)
    options = ["--data-dir", str(tmp_path), "--manual-dir", str(tmp_path / "by hand")]
    assert main(["prepare", "cpn_xray", *options, "--split-seed", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "36", "6", "18"]


MISTAKES = {
    ("prepare", "kvasr"): "data.name = 'kvasr' is no public set (did you mean ['kvasir'",
    ("prepare", "kvasir", "--splits", "official"): "kvasir has no splits 'official'",
    ("prepare", "kvasir", "--manual-dir", "nowhere"): "no directory nowhere",
    ("prepare", "kvasir", "--split-seed", "-1"): "data.split_seed must be",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, capsys):
    assert main([*arguments, f"--data-dir={tmp_path}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and MISTAKES[arguments] in error


@pytest.mark.parametrize(
    "arguments", [[], ["prepair"], ["prepare"], ["prepare", "x", "--splits=y"]]
)
def test_so_is_one_that_argparse_finds(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ") and "--help" in line


def test_in_a_process_of_its_own():
    result = subprocess.run(
        [sys.executable, "-m", "medmamba_jax.data", "prepare", "kvasr", "--data-dir=nowhere"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and line.startswith("error: data.name = 'kvasr'")
    assert not result.stdout
