"""What users may ask for by mistake, and the one line that each request is answered with.

`tests/data/test_bad_input.py` does the same for mistakes in images, folders, tables and splits, and
`test_train.py` for those in the flags and config files of training. Here are the other commands,
files of weights, runs, and the machine: permissions, network and packages.
"""

import builtins
import errno
import json
import os
import pathlib
import re
import sys
import urllib.error

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from medmamba_jax import cli

REQUESTS = {}


def bad_request(*patterns, code=2):
    """Registers a function (place, monkeypatch) -> the words of a command; `RUN` is a sound run."""

    def register(function):
        assert function.__name__ not in REQUESTS
        REQUESTS[function.__name__] = (function, patterns, code)
        return function

    return register


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with two classes of images."""
    for i in range(12):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8)
        Image.fromarray(pixels).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(place):
    """Path -> content of all files but locks, which are empty and stay."""
    paths = [path for path in place.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(place): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_bad_request_is_one_line(name, place, monkeypatch, capsys, request):
    make, patterns, code = REQUESTS[name]
    words = make(place, monkeypatch)
    if "RUN" in words:
        workdir = request.getfixturevalue("run_of_two_epochs")
        request.getfixturevalue("one_device")
        words = [str(workdir) if word == "RUN" else word for word in words]
    before = contents(place)
    try:
        found = cli.main(words)
    except SystemExit as end:  # of argparse
        found = end.code
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not line.startswith(("warning: ", "note: "))]
    assert found == code, said
    assert len(lines) == 1 and lines[0].startswith("error: "), said.err
    for pattern in patterns:
        assert re.search(pattern, lines[0]), lines[0]
    monkeypatch.undo()
    assert contents(place) == before


# Weights


def weights(place, content):
    path = place / "weights.safetensors"
    path.write_bytes(content)
    return ["convert", str(path), str(place / "out.safetensors")]


@bad_request(r"nowhere\.safetensors is not a file", "give one that is")
def weights_that_are_not_there(place, monkeypatch):
    return ["convert", "nowhere.safetensors", "out.safetensors"]


@bad_request(r"weights\.safetensors is not a readable \.safetensors file")
def weights_that_are_cut_off(place, monkeypatch):
    content = safetensors.numpy.save({"a": np.zeros(100, np.float32)})
    return weights(place, content[:-50])


@bad_request(r"weights\.safetensors")
def empty_weights(place, monkeypatch):
    return weights(place, b"")


@bad_request("a Git LFS pointer", "git lfs pull")
def weights_that_are_a_pointer(place, monkeypatch):
    return weights(place, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


@bad_request("a web page", "download the file that it links to")
def weights_that_are_a_web_page(place, monkeypatch):
    return weights(place, b"<!DOCTYPE html><html></html>")


@bad_request("compressed by gzip", "unpack it")
def weights_that_are_compressed(place, monkeypatch):
    return weights(place, b"\x1f\x8b\x08" + bytes(600))


@bad_request("weights.safetensors")
def weights_of_another_network(place, monkeypatch):
    return weights(place, safetensors.numpy.save({"fc.weight": np.zeros((2, 3), np.float32)}))


@bad_request("which no MedMamba has", "save the weights from before")
def weights_of_another_type(place, monkeypatch):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    return weights(place, len(header).to_bytes(8, "little") + header + bytes(4))


@bad_request(r"out\.h5 must end in one of \.safetensors")
def weights_to_another_ending(place, monkeypatch):
    return ["convert", "in.safetensors", "out.h5"]


@bad_request("is a folder: the model of a run leaves it by `medmamba export")
def conversion_of_a_run(place, monkeypatch):
    return ["convert", "images", "out.safetensors"]


@bad_request("nowhere is not a folder; make it first")
def conversion_into_a_folder_that_is_not_there(place, monkeypatch):
    words = weights(place, safetensors.numpy.save({"a": np.zeros(1, np.float32)}))
    return [*words[:2], "nowhere/out.safetensors"]


@bad_request("needs PyTorch: pip install torch", "which needs nothing more")
def weights_of_pytorch_without_pytorch(place, monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.partition(".")[0] == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    (place / "weights.pth").write_bytes(b"\x80\2")
    return ["convert", "weights.pth", "out.safetensors"]


# Runs


@bad_request("images holds no run", r"run\.json is missing", "train first")
def folder_without_a_run(place, monkeypatch):
    return ["evaluate", "images"]


@bad_request("there is no nowhere", "give a run's folder, a .safetensors file")
def run_that_is_not_there(place, monkeypatch):
    return ["predict", "nowhere", "images"]


def damaged(place, text):
    (place / "run").mkdir()
    (place / "run" / "run.json").write_text(text)
    return ["evaluate", "run"]


@bad_request(r"run/run\.json is damaged \(JSONDecodeError", "restore it from a copy")
def run_description_that_is_cut_off(place, monkeypatch):
    return damaged(place, '{"format": 3, "model": {')


@bad_request(r"run/run\.json is damaged \(KeyError", "restore it from a copy")
def run_description_that_is_empty(place, monkeypatch):
    return damaged(place, "{}")


@bad_request(r"run\.json has the format 999", "install a later version")
def run_of_a_later_version(place, monkeypatch):
    return damaged(place, '{"format": 999}')


@bad_request(r"run/run\.json is damaged \(AttributeError", "restore it from a copy")
def run_description_that_is_a_list(place, monkeypatch):
    return damaged(place, "[]")


@bad_request("there is no nowhere", "give an image, a folder, a pattern or a CSV table")
def prediction_of_images_that_are_not_there(place, monkeypatch):
    return ["predict", "RUN", "nowhere"]


@bad_request("there is no .*none.*png", "give an image, a folder, a pattern or a CSV table")
def pattern_that_fits_no_image(place, monkeypatch):
    return ["predict", "RUN", "images/none*.png"]


@bad_request("holds no image file", "check the path")
def prediction_of_a_folder_without_images(place, monkeypatch):
    (place / "texts").mkdir()
    (place / "texts" / "a.txt").write_text("a")
    return ["predict", "RUN", "texts"]


@bad_request("has no column 'path'", "name the column of the image files so")
def prediction_of_a_table_without_paths(place, monkeypatch):
    (place / "t.csv").write_text("file,label\na.png,a\n")
    return ["predict", "RUN", "t.csv"]


@bad_request(r"out\.xlsx", r"\.csv")
def prediction_into_a_file_of_another_kind(place, monkeypatch):
    return ["predict", "RUN", "images", "--output=out.xlsx"]


@bad_request("images is a folder: name a file in it|images")
def prediction_into_a_folder(place, monkeypatch):
    return ["predict", "RUN", "images", "--output=images"]


@bad_request("method", "--help")
def heat_map_by_an_unknown_method(place, monkeypatch):
    return ["explain", "RUN", "images", "--method=magic"]


@bad_request("invalid choice|must be one of", "--help|one of")
def export_to_an_unknown_format(place, monkeypatch):
    return ["export", "RUN", "--to=word", "--output=out.docx"]


@bad_request("unrecognized arguments: --speed=9", "medmamba evaluate --help")
def unknown_argument(place, monkeypatch):
    return ["evaluate", "RUN", "--speed=9"]


@bad_request("nowhere")
def summary_of_a_run_that_is_not_there(place, monkeypatch):
    return ["summarize", "nowhere"]


@bad_request("images")
def report_of_a_folder_without_a_run(place, monkeypatch):
    return ["report", "images"]


# The machine


def refusing(number):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number), "out.csv")

    return refuse


@bad_request("No space left on device: out.csv", "free some space")
def no_space_for_a_table(place, monkeypatch):
    monkeypatch.setattr("medmamba_jax.files.os.fsync", refusing(errno.ENOSPC))
    return ["predict", "RUN", "images", "--output=out.csv"]


@bad_request("Permission denied", "who may read and write it")
def no_permission_for_a_table(place, monkeypatch):
    monkeypatch.setattr("medmamba_jax.files.os.fsync", refusing(errno.EACCES))
    return ["predict", "RUN", "images", "--output=out.csv"]


@bad_request("Read-only file system", "check the path")
def disk_that_is_read_only(place, monkeypatch):
    monkeypatch.setattr("medmamba_jax.files.os.fsync", refusing(errno.EROFS))
    return ["predict", "RUN", "images", "--output=out.csv"]


@bad_request(
    "breastmnist.* could not be downloaded .*Name or service", "put it into data.public.manual_dir"
)
def no_network(place, monkeypatch):
    def unreachable(*arguments, **options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    return ["prepare", "breastmnist", f"--data-dir={place / 'sets'}"]


@bad_request("home folder is not known", "set the environment variable HOME")
def home_folder_that_is_not_known(place, monkeypatch):
    def unknown(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "expanduser", unknown)
    return ["predict", "RUN", "~/images"]


@bad_request("a DICOM file needs the package pydicom", r'pip install "medmamba-jax\[formats\]"')
def image_whose_package_is_not_installed(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for name in "ab":
        (place / "scans" / name).mkdir(parents=True)
        (place / "scans" / name / "0.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    return ["inspect", "scans"]


def test_the_tables_have_enough_rows():
    """Counts the rows of all tables of mistakes, each of which is a test."""
    tables = pathlib.Path(__file__).parents[1]
    rows = len(re.findall("^@mistake", (tables / "data" / "test_bad_input.py").read_text(), re.M))
    assert rows + len(REQUESTS) >= 120
