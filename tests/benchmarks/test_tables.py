import argparse
import json

import pytest

from benchmarks import row_files, sweep, torch_step, train_step
from benchmarks.row_files import TOO_LARGE, markdown, measure_missing, read_rows

ROW = {
    "batch": 128,
    "image_size": 224,
    "training_images_per_second": 3348.4,
    "inference_images_per_second": 13139.2,
    "peak_memory_gib": 7.46,
    "compile_seconds": None,
}


def write(folder, name, row, **versions):
    (folder / f"{name}.json").write_text(json.dumps({"versions": versions, "rows": [row]}))


@pytest.mark.slow
def test_rows_are_measured_once_and_failures_are_told_apart(tmp_path, monkeypatch, capfd):
    (tmp_path / "measuring.py").write_text(
        "import json, pathlib, sys\n"
        "what, path = sys.argv[1], sys.argv[-1]\n"
        "if what != 'good':\n"
        "    sys.exit(what)\n"
        "pathlib.Path(path).write_text(json.dumps({'versions': {}, 'rows': [{'a': 1}]}))\n"
    )
    monkeypatch.chdir(tmp_path)
    texts = {"good": "good", "large": "RESOURCE_EXHAUSTED: Out of memory", "bad": "no such thing"}
    commands = {name: ["measuring", text] for name, text in texts.items()}
    measure_missing(tmp_path / "rows", commands)
    rows = read_rows(tmp_path / "rows")
    assert rows["good"]["a"] == 1 and rows["large"]["failed"] == TOO_LARGE and "bad" not in rows
    assert "bad: left out: no such thing" in capfd.readouterr().err
    measure_missing(tmp_path / "rows", commands)
    assert [x.split(":")[0] for x in capfd.readouterr().out.splitlines()] == ["bad"]


def test_the_table_shows_every_row_of_the_folder(tmp_path, capsys):
    write(tmp_path, "medmamba_t_bfloat16", ROW, device="1 x GPU", jax="0.11")
    write(
        tmp_path, "timm_resnet50_compiled", ROW | {"compile_seconds": 31.4}, device="GPU", timm="1"
    )
    write(tmp_path, "official_medmamba_b_float32", {"failed": TOO_LARGE})
    args = argparse.Namespace(official=None, rows=[])
    lines = train_step.table(tmp_path, args).splitlines()
    assert lines[2:5] == [
        "| MedMamba-T | this project | bfloat16 | 3,348 | 13,139 | 7.5 |  |",
        "| ResNet-50 | timm, torch.compile | bfloat16 | 3,348 | 13,139 | 7.5 | 31 |",
        f"| MedMamba-B | official code | float32 | {TOO_LARGE} |  |  |  |",
    ]
    assert lines[-1] == "batch 128, 224 px; device 1 x GPU and GPU; jax 0.11; timm 1"
    assert "rows of official code are left out: --official is not given" in capsys.readouterr().err


def test_a_row_of_the_table_is_one_command():
    args = argparse.Namespace(batch=128, image_size=224, calls=5, groups=3, official="there")
    options = ["--batch", "128", "--image-size", "224", "--calls", "5", "--groups", "3"]
    commands = {row: train_step.command(row, args) for row in train_step.TABLE}
    start = ["benchmarks.train_step", "--variant", "medmamba_s", "--dtype", "float32"]
    assert commands["medmamba_s_float32"] == start + options
    start = ["benchmarks.torch_step", "--model", "timm/convnext_tiny", "--dtype", "bfloat16"]
    assert commands["timm_convnext_tiny_compiled"] == [*start, *options, "--compile"]
    official = commands["official_medmamba_t_bfloat16"]
    assert official[:5] == [
        "benchmarks.torch_step",
        "--model",
        "official/medmamba_t",
        "--official",
        "there",
    ]


OFFICIAL = """
import torch

class VSSM(torch.nn.Module):
    def __init__(self, depths, dims, num_classes):
        super().__init__()
        assert (depths, dims) == ([2, 2, 8, 2], [96, 192, 384, 768])
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, images):
        assert images.abs().max() <= 1
        return self.head(images.mean((2, 3)))
"""


def test_the_official_code_is_imported_from_its_folder(torch, tmp_path):
    (tmp_path / "MedMamba.py").write_text(OFFICIAL)
    args = argparse.Namespace(
        model="official/medmamba_s",
        official=str(tmp_path),
        batch=2,
        image_size=8,
        dtype="float32",
        compile=False,
        calls=2,
        groups=1,
    )
    row = torch_step.measure(args)
    assert row["parameters"] == 3 * 6 + 6 and row["training_images_per_second"] > 0
    assert torch_step.versions()["torch"] == torch.__version__
    with pytest.raises(SystemExit, match="needs --official"):
        torch_step.build("official/medmamba_t", 224, None)
    with pytest.raises(SystemExit, match="there is no"):
        torch_step.build("official/medmamba_t", 224, str(tmp_path / "missing"))


def test_a_plot_is_drawn_from_files(tmp_path):
    for point in sweep.POINTS:
        batch, side = (int(part) for part in point.split("x"))
        row = ROW | {"batch": batch, "image_size": side, "variant": "medmamba_t"}
        write(tmp_path, point, row | {"dtype": "bfloat16"}, device="1 x GPU")
    write(tmp_path, "16x1024", {"failed": TOO_LARGE})
    rows = read_rows(tmp_path)
    assert set(rows) == set(sweep.POINTS)
    sweep.plot(str(tmp_path / "plot.png"), rows, "a title")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    args = argparse.Namespace(variant="medmamba_t", dtype="bfloat16", calls=5, groups=5)
    command = sweep.command("16x768", args)
    assert command[command.index("--batch") + 1] == "16"
    assert command[command.index("--image-size") + 1] == "768"


def test_names_that_match_nothing_are_refused(tmp_path, monkeypatch, capsys):
    assert row_files.chosen(["a_1", "b_1", "a_2"], ["a*", "b_1"]) == ["a_1", "b_1", "a_2"]
    assert row_files.chosen(["a_1", "b_1"], ["b*"]) == ["b_1"]
    with pytest.raises(SystemExit, match="'c' matches none of a_1, b_1"):
        row_files.chosen(["a_1", "b_1"], ["a*", "c"])
    for wrong in ("8", "8x", "0x224", "8x224x3"):
        monkeypatch.setattr("sys.argv", ["sweep", f"--folder={tmp_path}", "--points", wrong])
        with pytest.raises(SystemExit):
            sweep.main()
        assert f"'{wrong}' is not <batch>x<side>" in capsys.readouterr().err


def test_markdown_and_figures():
    assert markdown(["a", "b"], [["1", ""]]) == "| a | b |\n| --- | --- |\n| 1 |  |"
    assert row_files.figure(1234.56) == "1,235" and row_files.figure(None) == ""
