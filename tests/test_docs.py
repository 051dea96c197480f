"""The pages for readers agree with the code: settings, commands, links, signatures, examples."""

import ast
import importlib.util
import inspect
import pathlib
import re
import shlex
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

import medmamba_jax as mm
from medmamba_jax.cli import _parser
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.runs.workdir import flat

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
API = (ROOT / "docs" / "api.md").read_text()
SETTINGS = flat(mm.default_config().to_dict())
EXAMPLES = {
    section.split("\n", 1)[0]: example[1]
    for section in API.split("\n## ")[1:]
    if (example := re.search(r"```python\n(.*?)```", section, re.DOTALL))
}
# They need a trained run, and compile.
COMPILING = ("Train", "Use a trained model", "Explain", "Evaluate", "Weights")


def matches(pattern, page):
    return [match[1] for match in re.finditer(pattern, page.read_text(), re.MULTILINE)]


def test_the_settings_page_is_what_the_generator_gives(monkeypatch):
    for name in ("tiny", "tiny_mamba"):  # plain_block.py adds them
        monkeypatch.delitem(mm.VARIANTS, name)
    path = ROOT / "docs" / "generate_settings.py"
    spec = importlib.util.spec_from_file_location("generate_settings", path)
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    page = generator.page()
    assert generator.PAGE.read_text() == page, "run python docs/generate_settings.py"
    for setting in SETTINGS:
        section, _, key = setting.rpartition(".")
        part = page.split(f"## `{section}`\n")[1].split("\n## ")[0]
        assert f"| `{key}` |" in part


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_pages_name_exist(page):
    sections = {key.rpartition(".")[0] for key in SETTINGS}
    for flag in matches(r"--config\.([\w.]+)", page):
        assert flag in SETTINGS, flag
    for name in matches(r"`((?:model|data|train)(?:\.[a-z_]+)+)(?:=[^`]*)?`", page):
        assert name in SETTINGS or name in sections, name
    for file in matches(r"--config=(configs/\w+\.py)", page):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_pages_name_exist(page):
    for command in matches(r"(?:^ {4}|`)medmamba ([a-z][^`\n\\]*)", page):
        name, *arguments = shlex.split(command, comments=True)
        if name == "train":
            continue  # its flags are those of the test above
        if not arguments and name != "list":
            arguments = ["--help"]  # the text only names the command
        with pytest.raises(SystemExit, match=r"^0$") if "--help" in arguments else nullcontext():
            _parser().parse_args([name, *arguments])
    for module in matches(r"python -m ([\w.]+)", page):
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        if spec.submodule_search_locations and (ROOT / module.replace(".", "/")).is_dir():
            assert importlib.util.find_spec(f"{module}.__main__"), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_are_alive(page):
    for target in matches(r"\]\(([^)#\s]+)", page):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_api_page_describes_every_public_name():
    for name in mm.__all__:
        assert re.search(rf"^- `mm\.{name}\b|`mm\.{name}`", API, re.MULTILINE), name


@pytest.mark.parametrize(
    "documented", [x.group(1, 2) for x in re.finditer(r"^- `([\w.]+)\(([^`]*)\)`", API, re.M)]
)
def test_signatures_on_the_api_page(documented):
    name, text = documented
    first, *path = name.removeprefix("mm.").split(".")
    function = getattr(mm, first)
    for attribute in path:
        function = getattr(function, attribute)
    if isinstance(function, type):
        function = function.__init__  # the metaclass of Flax hides the signature
    whole = not text.endswith(", ...")
    text = re.sub(r", \.\.\.$", "", text)
    arguments = ast.parse(f"def f({text}): ...").body[0].args
    named = [argument.arg for argument in arguments.args + arguments.kwonlyargs]
    named += [arguments.kwarg.arg] if arguments.kwarg else []
    real = {k: v for k, v in inspect.signature(function).parameters.items() if k != "self"}
    assert named == list(real) if whole else named == list(real)[: len(named)]
    keywords = [k for k, v in real.items() if v.kind is inspect.Parameter.KEYWORD_ONLY]
    assert [argument.arg for argument in arguments.kwonlyargs] == keywords or not whole
    defaults = dict(zip(reversed(arguments.args), reversed(arguments.defaults), strict=False))
    defaults |= dict(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    for argument, default in defaults.items():
        if default is not None and ast.unparse(default) != "...":
            assert ast.literal_eval(default) == real[argument.arg].default, argument.arg


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with `my_images`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # for caches
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 180)):
        (tmp_path / "my_images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(level, 20, (40, 50)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "my_images" / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def tables():
    """Takes the rows back that an example adds to tables."""
    kept = [(table, dict(table)) for table in (mm.METRICS, POLICIES)]
    yield
    for table, rows in kept:
        table.clear()
        table.update(rows)


@pytest.mark.parametrize(
    "section",
    [
        pytest.param(x, marks=pytest.mark.nightly) if x == "Model" else x
        for x in EXAMPLES
        if x not in COMPILING
    ],
)
def test_examples_run(section, folder, tables):
    exec(EXAMPLES[section], {"__name__": "example"})


@pytest.mark.slow
@pytest.mark.parametrize("section", COMPILING)
def test_examples_with_a_trained_model_run(
    section, folder, trained, mamba_run, one_device, monkeypatch
):
    monkeypatch.setitem(mm.VARIANTS, "medmamba_nano", mm.VARIANTS["tiny"])  # it compiles faster
    run = (
        mamba_run if section == "Weights" else trained[0]
    )  # official files have names for its blocks
    shutil.copytree(run, folder / "runs" / "x")
    exec(EXAMPLES[section], {"__name__": "example"})
