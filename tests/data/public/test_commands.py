"""`medmamba list` and `medmamba prepare`."""

import re

import pytest

from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.errors import UserError


@pytest.fixture
def archive(zipped, noise_png):
    names = [f"{label}/{i}.png" for label in CATALOGUE["cpn_xray"].class_names for i in range(20)]
    return zipped({name: noise_png(i) for i, name in enumerate(names)})


def test_list_shows_every_set_once(command):
    lines = command("list")
    names = [line.split()[0] for line in lines[1:-2]]
    assert names[:4] == ["kvasir", "fetal_planes_db", "cpn_xray", "pad_ufes_20"]
    assert len(names) == 14 and all(name.endswith("mnist") for name in names[4:])
    assert next(line for line in lines if line.startswith("cpn_xray")).endswith("not known")
    assert "paper, official, patient" in next(line for line in lines if "fetal" in line)


def test_prepare_counts_the_images(tmp_path, publish, archive, command):
    publish("cpn_xray", archive)
    table = command("prepare", "cpn_xray", "--data-dir", tmp_path)[-5:]
    assert [line.split() for line in table] == [
        ["class", "train", "val", "test"],
        ["COVID", "12", "2", "6"],
        ["NORMAL", "12", "2", "6"],
        ["PNEUMONIA", "12", "2", "6"],
        ["all", "36", "6", "18"],
    ]
    assert (tmp_path / "cpn_xray").is_dir()


def test_prepare_takes_what_was_fetched_by_hand(tmp_path, archive, command):
    (tmp_path / "by hand").mkdir()
    (tmp_path / "by hand" / "mine.zip").write_bytes(archive)
    options = ["--data-dir", tmp_path, "--manual-dir", tmp_path / "by hand", "--split-seed", "3"]
    assert command("prepare", "cpn_xray", *options)[-1].split() == ["all", "36", "6", "18"]


MISTAKES = {
    ("prepare", "kvasr"): "data.name = 'kvasr' is no public set (did you mean ['kvasir'",
    ("prepare", "kvasir", "--splits", "official"): "kvasir has no splits 'official'",
    ("prepare", "kvasir", "--manual-dir", "nowhere"): "no directory nowhere",
    ("prepare", "kvasir", "--split-seed", "-1"): "data.split_seed must be",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_named(tmp_path, arguments, command):
    with pytest.raises((UserError, FileNotFoundError), match=re.escape(MISTAKES[arguments])):
        command(*arguments, f"--data-dir={tmp_path}")


@pytest.mark.parametrize("arguments", [["prepare"], ["prepare", "x", "--splits=y"]])
def test_so_is_one_that_argparse_finds(arguments, command, capsys):
    with pytest.raises(SystemExit) as stop:
        command(*arguments)
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err
