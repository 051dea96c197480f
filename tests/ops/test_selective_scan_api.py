"""Arguments, the choice of an implementation, and what the log says of it."""

import jax
import jax.numpy as jnp
import pytest
from selective_scan_base import make_inputs

import medmamba_jax as mm
from medmamba_jax.ops.selective_scan import IMPLEMENTATIONS, api, choose
from medmamba_jax.ops.selective_scan.shapes import ScanShape

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


def test_implementations_of_other_backends_are_refused(inputs, monkeypatch):
    elsewhere = api.Implementation(IMPLEMENTATIONS["chunked"].run, backends=("abacus",))
    monkeypatch.setitem(IMPLEMENTATIONS, "chunked", elsewhere)
    with pytest.raises(NotImplementedError, match=r"'chunked' does not run on .*'associative'"):
        mm.selective_scan(**inputs, implementation="chunked")
    assert choose() == "associative"  # the next row

    for name in list(IMPLEMENTATIONS):
        monkeypatch.setitem(IMPLEMENTATIONS, name, elsewhere)
    with pytest.raises(NotImplementedError, match="no selective_scan implementation runs on"):
        mm.selective_scan(**inputs)


def test_the_first_row_is_the_default():
    assert choose() == "chunked"


def test_the_log_names_implementation_and_backend_once(inputs, monkeypatch):
    lines = []
    monkeypatch.setattr(api.logging, "info", lambda text, *args: lines.append(text % args))
    api._log_once.cache_clear()
    for implementation in ("sequential", "sequential", None, None):
        mm.selective_scan(**inputs, implementation=implementation)
    backend = jax.default_backend()
    assert lines == [
        f"selective_scan runs 'sequential' on {backend}",
        f"selective_scan runs 'chunked' on {backend}",
    ]
