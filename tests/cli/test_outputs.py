"""One rule for what `--output` names: nothing is replaced, unless `--overwrite` is given."""

import numpy as np
import pytest
from PIL import Image

from medmamba_jax import cli

# Command -> what comes after it, and the files that it writes.
COMMANDS = {
    "predict": (["RUN", "scans", "--output=out.csv"], ["out.csv"]),
    "explain": (
        ["RUN", "scans", "--method=occlusion", "--output=out"],
        ["out/0001_0.npy", "out/0001_0.png", "out/maps.csv", "out/sheet.png"],
    ),
    "embed": (["RUN", "scans", "--output=out"], ["out/embedding.csv", "out/embedding.npz"]),
    "export": (
        ["RUN", "--to=stablehlo", "--output=out.stablehlo"],
        ["out.stablehlo", "out.stablehlo.json"],
    ),
    "summarize": (
        ["RUN", "--output=out"],
        ["out/report.html", "out/summary.csv", "out/summary.json"],
    ),
}


@pytest.fixture
def place(trained, one_device, tmp_path, monkeypatch):
    """The current folder, with an image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    Image.fromarray(np.full((32, 32), 90, np.uint8)).save(tmp_path / "scans" / "0.png")
    return tmp_path


def below(place):
    paths = [path for path in place.rglob("*") if path.is_file() and "scans" not in path.parts]
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}


def words(command, run):
    return [command, *(str(run) if word == "RUN" else word for word in COMMANDS[command][0])]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("embed", "export") else ())
        for name in COMMANDS
    ],
)
def test_nothing_is_replaced_without_being_told(command, trained, place, capsys):
    options, names = words(command, trained[0]), COMMANDS[command][1]
    assert cli.main(options) == 0
    assert sorted(below(place)) == names
    for name in names:
        (place / name).write_text("of an earlier call")
    before = below(place)
    capsys.readouterr()
    assert cli.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: out") and "or --overwrite" in error and error.count("\n") == 1
    assert below(place) == before
    own = place / "out" / "of_my_own.txt"
    own.parent.mkdir(exist_ok=True)
    own.write_text("stays")
    assert cli.main([*options, "--overwrite"]) == 0
    after = below(place)
    assert after.pop("out/of_my_own.txt") == b"stays"
    assert sorted(after) == names and not set(after.values()) & set(before.values())


@pytest.mark.parametrize("command", ["explain", "embed"])
def test_a_folder_of_other_files_is_never_emptied(command, trained, place, capsys):
    assert cli.main([command, str(trained[0]), "scans", "--output=scans", "--overwrite"]) == 2
    error, table = capsys.readouterr().err, {"explain": "maps.csv"}.get(command, "embedding.csv")
    assert f"scans has files but no {table}, which a finished call writes last" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_to_gives_one_line(command, trained, place, capsys):
    options = words(command, trained[0])
    (place / "file").write_text("")
    before = below(place)
    where = options.pop().replace("--output=", "--output=file/")
    assert cli.main([*options, where]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "file" in error and error.count("\n") == 1
    assert below(place) == before
