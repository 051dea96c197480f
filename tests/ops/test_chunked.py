import math
import re

import jax
import jax.numpy as jnp
import pytest
from selective_scan_base import SelectiveScanCases

import medmamba_jax as mm
from medmamba_jax.ops.scan.chunked import max_chunk, scan_chunked
from medmamba_jax.ops.scan.chunks import chunk_length
from medmamba_jax.ops.scan.shapes import ScanShape


class TestChunked(SelectiveScanCases):
    implementation = "chunked"
    quick = ("test_directions", "test_bfloat16", "test_large_steps_underflow_to_the_right_answer")


@pytest.mark.parametrize("longest", [1, 2, 13, 16, 64, 1000])
def test_chunks_are_few_even_and_not_too_long(longest):
    for length in [*range(1, 70), 196, 784, 3136]:
        chunk = chunk_length(length, longest)
        chunks = math.ceil(length / chunk)
        assert 1 <= chunk <= min(longest, length)
        assert chunks == math.ceil(length / longest)
        assert chunks * chunk - length < chunks  # padding: less than a step for each chunk


def abstract_inputs(shape: ScanShape):
    b, l, k, d, n = shape.b, shape.l, shape.k, shape.d, shape.n
    shapes = {
        "u": (b, l, k, d),
        "delta": (b, l, k, d),
        "A": (k, d, n),
        "B": (b, l, k, n),
        "C": (b, l, k, n),
        "D": (k, d),
    }
    return {name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in shapes.items()}


def test_the_backward_pass_needs_a_fraction_of_the_associative_memory():
    inputs = abstract_inputs(ScanShape(b=2, l=1568, k=4, d=96, n=16))

    def temporary_bytes(implementation):
        def loss(inputs):
            return mm.selective_scan(**inputs, implementation=implementation).sum()

        compiled = jax.jit(jax.grad(loss)).lower(inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    chunked, associative = temporary_bytes("chunked"), temporary_bytes("associative")
    states = 4 * 2 * 1568 * 4 * 96 * 16  # float32, all states of all steps
    assert chunked < associative / 15
    assert chunked < states / 2


def chunks(length, **options) -> int:
    """How many chunks a scan of that length walks."""
    u, dt, A, B, C, D = abstract_inputs(ScanShape(b=1, l=length, k=1, d=2, n=2)).values()
    text = str(jax.make_jaxpr(lambda *x: scan_chunked(*x, **options))(u, dt, A, B, C, D))
    (found,) = set(re.findall(r"\blength=(\d+)\b", text))
    return int(found)


def test_longest_sets_the_steps_of_a_chunk():
    assert chunks(48, longest=12) == 4


def test_the_default_device_sets_the_steps_of_a_chunk(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chunks(640) == 10
    with jax.default_device(jax.devices("cpu")[0]):
        assert chunks(640) == 40


def test_a_backend_that_nobody_measured_has_a_chunk(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "abacus")
    assert chunks(640) == 640 // max_chunk("abacus")
