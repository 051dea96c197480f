"""The example of docs/data.md."""

import pathlib
import re

import pytest

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    # As the other tests train, so that what they have compiled is used.
    shorter = example.replace(
        "results =",
        "config.train.update(epochs=2, lr=1e-3)\nconfig.data.cache_dir = 'cache'\nresults =",
    )
    assert shorter != example
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(shorter, DOCUMENT.name, "exec"), names)
    assert names["results"]["test"]["num_examples"] == 27
    assert (tmp_path / "runs" / "discs" / "split.csv").is_file()
