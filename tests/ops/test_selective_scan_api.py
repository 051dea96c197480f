"""Arguments, the choice of an implementation, and what the log says of it."""

import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from selective_scan_base import make_inputs

import medmamba_jax as mm
from medmamba_jax.ops import pallas_gpu
from medmamba_jax.ops.backend import default_backend
from medmamba_jax.ops.scan import IMPLEMENTATIONS, Case, choose, implementations
from medmamba_jax.ops.scan.implementations import TPU_SWITCH, Implementation
from medmamba_jax.ops.scan.shapes import ScanShape

SHAPE = ScanShape(b=2, l=6, k=3, d=5, n=4)


@pytest.fixture
def inputs():
    return make_inputs(SHAPE)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("u", (2, 6, 15)),
        ("u", (2, 0, 3, 5)),
        ("delta", (2, 6, 3, 4)),
        ("delta", (1, 6, 3, 5)),
        ("A", (3, 4, 5)),
        ("A", (15, 4)),
        ("A", (3, 5, 0)),
        ("B", (2, 6, 4)),
        ("B", (2, 5, 3, 4)),
        ("C", (2, 6, 3, 5)),
        ("D", (5,)),
        ("D", (3, 1)),
        ("delta_bias", (15,)),
        ("delta_bias", (1, 5)),
    ],
)
def test_misshapen_arguments_are_named(inputs, name, shape):
    inputs[name] = jnp.zeros(shape)
    with pytest.raises(ValueError, match=rf"^{name} must "):
        mm.selective_scan(**inputs)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "delta_bias"])
def test_integers_are_refused_by_name(inputs, name):
    inputs[name] = inputs[name].astype(jnp.int32)
    with pytest.raises(ValueError, match=rf"^{name} must be floating, got int32"):
        mm.selective_scan(**inputs)


@pytest.mark.parametrize(("name", "value"), [("D", None), ("u", [[1.0]])])
def test_what_is_no_array_is_refused_by_name(inputs, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be an array, got {type(value).__name__}"):
        mm.selective_scan(**{**inputs, name: value})


def test_the_bias_is_optional(inputs):
    zero = {**inputs, "delta_bias": jnp.zeros_like(inputs["delta_bias"])}
    del inputs["delta_bias"]
    assert jnp.array_equal(
        mm.selective_scan(**inputs, delta_softplus=True),
        mm.selective_scan(**zero, delta_softplus=True),
    )


def test_unknown_implementations_are_refused(inputs):
    with pytest.raises(ValueError, match=r"'cuda' is unknown.*'chunked'"):
        mm.selective_scan(**inputs, implementation="cuda")


def case(**changes):
    common = {"backend": "cpu", "dtype": jnp.dtype("float32"), "h": None, "w": 49, "d": 96, "n": 16}
    return Case(**{**common, **changes})


def refuse(reason):
    return Implementation(IMPLEMENTATIONS["chunked"].scan, refusal=lambda case: reason)


def test_an_implementation_that_cannot_is_refused_by_name_and_passed_over(inputs, monkeypatch):
    monkeypatch.setitem(IMPLEMENTATIONS, "stepwise", refuse("it wants an abacus"))
    with pytest.raises(NotImplementedError, match=r"'stepwise'.* an abacus; .*'chunked'.* can"):
        mm.selective_scan(**inputs, implementation="stepwise")
    assert choose(None, case()) == "chunked"  # the next row

    for name in list(IMPLEMENTATIONS):
        monkeypatch.setitem(IMPLEMENTATIONS, name, refuse("none here"))
    with pytest.raises(NotImplementedError, match="no implementation of the selective scan takes"):
        mm.selective_scan(**inputs)


def test_the_default_on_a_cpu():
    assert choose(None, case()) == "stepwise"


@pytest.fixture
def hopper(monkeypatch):
    """A GPU that could run the kernels, as far as choosing goes."""
    monkeypatch.setattr(pallas_gpu, "_refusal_of_gpu", lambda: None)
    monkeypatch.setattr(pallas_gpu, "_missing", lambda: None)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "pallas_gpu"),
        ({"dtype": jnp.dtype("bfloat16"), "h": 7, "w": 7, "d": 768}, "pallas_gpu"),
        ({"d": 1024, "h": 5, "w": 9}, "pallas_gpu"),
        ({"d": 80}, "chunked"),
        ({"n": 8}, "chunked"),
        ({"dtype": jnp.dtype("float16")}, "chunked"),
        ({"dtype": jnp.dtype("float64")}, "chunked"),
        ({"h": 2, "w": 2}, "chunked"),
        ({"h": 7, "w": 3}, "chunked"),
        ({"w": 1}, "chunked"),
        ({"h": 1}, "chunked"),  # an image of one row, whose columns have one step
    ],
)
def test_the_table_on_a_gpu(hopper, changes, name):
    asked = case(backend="gpu", **changes)
    assert choose(None, asked) == name
    for kernel in ("pallas_gpu", "pallas_gpu_recompute"):
        if name == "pallas_gpu":
            assert choose(kernel, asked) == kernel
        else:
            with pytest.raises(NotImplementedError, match=f"{kernel!r} cannot run here: it"):
                choose(kernel, asked)


@pytest.mark.parametrize("capability", ["8.0", "12.0", "gfx942"])
def test_other_gpus_than_hopper_take_the_next_row(monkeypatch, capability):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(pallas_gpu.jax, "devices", lambda platform: [device])
    assert choose(None, case(backend="gpu")) == "chunked"
    with pytest.raises(NotImplementedError, match=rf"a Hopper GPU .*'{capability}'"):
        choose("pallas_gpu", case(backend="gpu"))


def test_a_default_device_decides_the_backend():
    assert default_backend() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert default_backend() == "cpu"
    with jax.default_device("cpu"):
        assert default_backend() == "cpu"


@pytest.fixture
def probe(monkeypatch):
    """A Hopper GPU on which nothing is known yet of what this jax can build."""
    monkeypatch.setattr(pallas_gpu, "_refusal_of_gpu", lambda: None)
    monkeypatch.setattr(pallas_gpu, "_TESTED", ())
    pallas_gpu._missing.cache_clear()
    yield
    pallas_gpu._missing.cache_clear()


def test_a_jax_without_what_the_kernels_need_is_warned_about(probe, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.mosaic.gpu", None)
    monkeypatch.delitem(sys.modules, "medmamba_jax.ops.pallas_gpu.mosaic", raising=False)
    for name in ("scan", "forward", "backward", "segments", "staging", "mosaic"):
        monkeypatch.delitem(sys.modules, f"medmamba_jax.ops.pallas_gpu.{name}", raising=False)
        monkeypatch.delattr(pallas_gpu, name, raising=False)
    with pytest.warns(UserWarning, match=r"pallas_gpu is left out: .*jax.experimental.mosaic"):
        assert choose(None, case(backend="gpu")) == "chunked"


def test_a_private_part_that_changed_is_found_before_it_is_needed(probe, monkeypatch):
    """Shuffles are emitted when a kernel is lowered, long after it was traced."""
    from medmamba_jax.ops.pallas_gpu import mosaic

    monkeypatch.setattr(mosaic, "utils", types.SimpleNamespace(ir=mosaic.utils.ir))
    with pytest.warns(UserWarning, match=r"pallas_gpu is left out: jax .* cannot build it"):
        assert choose(None, case(backend="gpu")) == "chunked"


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("change", [AttributeError, TypeError, NotImplementedError, ImportError])
def test_errors_that_say_another_jax_leave_the_kernels_out(probe, monkeypatch, change, verbose):
    error = RuntimeError("Exception while lowering") if verbose else change("moved")
    error.__cause__ = change("moved") if verbose else None
    fail_to_lower(monkeypatch, error)
    with pytest.warns(UserWarning, match=r"pallas_gpu is left out: jax .* cannot build it"):
        assert choose(None, case(backend="gpu")) == "chunked"


@pytest.mark.parametrize("fault", [ValueError, OSError, MemoryError, RuntimeError, KeyError])
def test_other_errors_of_the_probe_are_raised(probe, monkeypatch, fault):
    fail_to_lower(monkeypatch, fault("not jax's doing"))
    for _ in range(2):  # and not remembered as an answer
        with pytest.raises(fault, match="not jax's doing"):
            choose(None, case(backend="gpu"))


def fail_to_lower(monkeypatch, error):
    from medmamba_jax.ops.pallas_gpu import scan

    def lower():
        raise error

    monkeypatch.setattr(scan, "lower", lower)


def test_only_mosaic_py_imports_what_jax_may_change():
    """All but the TPU kernel, which is one file and is imported where it is used."""
    private = re.compile(r"jax\._src|jax\.experimental|jaxlib\.mlir|jax\.extend|jax\.interpreters")
    folder = pathlib.Path(pallas_gpu.__file__).parents[1]
    found = {file.name for file in folder.rglob("*.py") if private.search(file.read_text())}
    assert found == {"mosaic.py", "pallas_tpu.py"}


@pytest.mark.parametrize("module", ["jax.experimental.pallas", "jax.experimental.mosaic.gpu"])
def test_the_scan_runs_with_a_jax_that_has_no_kernels(module):
    program = f"""
import sys
sys.modules[{module!r}] = None
import jax.numpy as jnp
import medmamba_jax as mm
u, A, B, D = (jnp.ones(s) for s in [(1, 3, 1, 2), (1, 2, 4), (1, 3, 1, 4), (1, 2)])
print(mm.selective_scan(u, u, -A, B, B, D).shape)
"""
    run = [sys.executable, "-c", program]
    assert (
        subprocess.run(run, capture_output=True, text=True, check=True).stdout == "(1, 3, 1, 2)\n"
    )


def test_the_kernels_can_be_built_with_this_jax(probe):
    assert pallas_gpu._missing() is None


def test_nothing_is_lowered_with_a_jax_that_the_tests_have_seen(probe, monkeypatch):
    fail_to_lower(monkeypatch, AttributeError("moved"))
    monkeypatch.setattr(pallas_gpu, "_TESTED", (jax.__version__,))
    assert choose(None, case(backend="gpu")) == "pallas_gpu"


def test_the_tpu_kernel_waits_for_its_switch(monkeypatch):
    assert choose(None, case(backend="tpu")) == "chunked"
    assert choose("pallas_tpu", case(backend="tpu")) == "pallas_tpu"
    monkeypatch.setenv(TPU_SWITCH, "1")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert choose(None, case(backend="tpu")) == "pallas_tpu"
    monkeypatch.setattr(jax, "device_count", lambda: 8)  # cannot be partitioned
    assert choose(None, case(backend="tpu")) == "chunked"


def test_the_log_names_operation_implementation_and_case_once(inputs, monkeypatch):
    lines = []
    log = implementations.logging
    monkeypatch.setattr(log, "info", lambda text, *args: lines.append(text % args))
    implementations.log_choice.cache_clear()
    for implementation in ("sequential", "sequential", "chunked", "chunked"):
        mm.selective_scan(**inputs, implementation=implementation)
    starts = [line.partition(" for Case(backend=")[0] for line in lines]
    assert starts == ["selective_scan runs 'sequential'", "selective_scan runs 'chunked'"]
    assert jax.default_backend() in lines[0]
