import jax
import pytest
from selective_scan_base import SelectiveScanCases, make_inputs

import medmamba_jax as mm
from medmamba_jax.ops.scan.shapes import ScanShape

# It treats channels and states alike, so that few widths stand for all.
QUICK = {(1, 8), (32, 1), (192, 16)}


class TestStepwise(SelectiveScanCases):
    implementation = "stepwise"

    @pytest.mark.parametrize(
        ("d", "n"),
        [
            pytest.param(d, n, marks=() if (d, n) in QUICK else pytest.mark.nightly)
            for d in (1, 32, 96, 192)
            for n in (1, 8, 16)
        ],
    )
    def test_widths(self, d, n):
        self.check(make_inputs(ScanShape(b=1, l=37, k=2, d=d, n=n), seed=d + n))


def test_the_backward_pass_keeps_one_state_of_sixteen_and_no_others():
    shape = ScanShape(b=2, l=1568, k=4, d=96, n=16)
    loss = jax.grad(lambda x: mm.selective_scan(**x, implementation="stepwise").sum())
    compiled = jax.jit(loss).lower(make_inputs(shape)).compile()
    states = 4 * shape.b * shape.l * shape.k * shape.d * shape.n  # bytes of all states in float32
    assert compiled.memory_analysis().temp_size_in_bytes < states / 4
