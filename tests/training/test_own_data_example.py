"""The example of docs/data.md."""

import json
import pathlib
import re

import pytest

import medmamba_jax as mm

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.parametrize(
    "variant", ["tiny", pytest.param("medmamba_nano", marks=pytest.mark.nightly)]
)
def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, variant):
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line]) == 10
    monkeypatch.setitem(mm.VARIANTS, "medmamba_nano", mm.VARIANTS[variant])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where the default cache is
    exec(compile(example, DOCUMENT.name, "exec"), {})
    results = json.loads((tmp_path / "runs/noise/results/test.json").read_text())
    assert results["num_examples"] == 27
    if variant == "medmamba_nano":  # the other is too small to learn this in an epoch
        assert results["auc"] > 0.8
    assert (tmp_path / "runs" / "noise" / "split.csv").is_file()
