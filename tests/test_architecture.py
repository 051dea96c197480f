"""The directions of imports that docs/architecture.md promises."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "medmamba_jax"

# The table of rooms in docs/architecture.md, from above; rooms in one row may import each other.
ROWS = (
    ("cli",),
    ("training", "demo"),
    ("report",),
    ("runs",),
    ("evaluation", "prediction", "explanation", "exports"),
    ("predictor",),
    ("assessment",),
    ("metrics", "parallel", "hosts"),
    ("interop",),
    ("models",),
    ("ops",),
    ("data",),
    ("sections", "errors", "files", "locking", "interrupts", "pretrained"),
)
LEVEL = {room: level for level, rooms in enumerate(ROWS) for room in rooms}
NO_ROOM = {"__init__", "__main__", "version"}


def imports(path):
    """Yields the modules of this package, and the other packages, that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # A name may be a module of the package that it is imported from.
            modules = PACKAGE.parent.joinpath(*node.module.split("."))
            for alias in node.names:
                is_module = (modules / f"{alias.name}.py").is_file() or (
                    modules / alias.name
                ).is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def room(module, inside=()):
    """The room of a dotted module name, within `medmamba_jax` or a folder of it; or None."""
    parts = module.split(".")
    start = ["medmamba_jax", *inside]
    return parts[len(start)] if parts[: len(start)] == start and len(parts) > len(start) else None


def files(folder):
    return sorted(folder.rglob("*.py"))


def name(path, folder):
    return path.relative_to(folder).with_suffix("").parts[0]


def test_the_table_is_the_one_in_the_documentation():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    written = [
        tuple(part.strip("` ").removesuffix("/").removesuffix(".py") for part in row.split(","))
        for row in rows[: len(ROWS)]
    ]
    assert [tuple(x for x in row if x != "main") for row in written] == list(ROWS)
    there = {name(path, PACKAGE) for path in files(PACKAGE)}
    assert there - NO_ROOM == set(LEVEL)


def test_a_room_imports_only_rooms_below_it():
    wrong = []
    for path in files(PACKAGE):
        here = name(path, PACKAGE)
        for module in imports(path) if here in LEVEL else ():
            there = room(module)
            if there in LEVEL and there != here and LEVEL[there] < LEVEL[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


@pytest.mark.parametrize("upper", ["interop", "models", "ops"])
def test_images_and_models_do_not_know_each_other(upper):
    both = [(upper, "data"), ("data", upper)]
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for here, there in both
        for path in files(PACKAGE / here)
        for module in imports(path)
        if room(module) == there
    ]
    assert not wrong


def test_data_imports_no_jax():
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(PACKAGE / "data")
        for module in imports(path)
        if module.split(".")[0] in ("jax", "flax", "optax", "orbax")
    ]
    assert not wrong


def test_the_rooms_of_data_import_each_other_in_no_cycle():
    folder = PACKAGE / "data"
    uses: dict[str, set[str]] = {}
    for path in files(folder):
        here = name(path, folder)
        if here != "__init__":
            there = {room(module, ("data",)) for module in imports(path)}
            uses.setdefault(here, set()).update(there - {None, here})

    def reached(start):
        found, todo = set(), [start]
        while todo:
            new = uses.get(todo.pop(), set()) - found
            found |= new
            todo += new
        return found

    assert not [here for here in uses if here in reached(here)]
