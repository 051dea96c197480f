import pytest
from selective_scan_base import SelectiveScanCases, make_inputs

from medmamba_jax.ops.scan.shapes import ScanShape

# It treats channels and states alike, so that few widths stand for all. Each compiles for long.
QUICK = {(1, 8), (32, 1)}


class TestAssociative(SelectiveScanCases):
    implementation = "associative"

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

    @pytest.mark.parametrize(
        "length", [1, 7, 50, *(pytest.param(l, marks=pytest.mark.nightly) for l in (49, 196, 784))]
    )
    def test_lengths(self, length):
        self.check(make_inputs(self.shape(b=2, l=length, k=self.k), seed=length))
