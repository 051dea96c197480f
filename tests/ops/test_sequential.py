import pytest
from selective_scan_base import SelectiveScanCases, make_inputs

from medmamba_jax.ops.scan.shapes import ScanShape

# It treats channels and states alike, so that few widths stand for all.
QUICK = {(1, 8), (32, 1), (192, 16)}


class TestSequential(SelectiveScanCases):
    implementation = "sequential"

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
