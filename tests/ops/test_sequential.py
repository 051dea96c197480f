import pytest
from selective_scan_base import SelectiveScanCases, make_inputs

from medmamba_jax.ops.scan.shapes import ScanShape


class TestSequential(SelectiveScanCases):
    implementation = "sequential"

    # It treats channels and states alike, so that few widths stand for all.
    @pytest.mark.parametrize(("d", "n"), [(1, 8), (32, 1), (192, 16)])
    def test_widths(self, d, n):
        self.check(make_inputs(ScanShape(b=1, l=37, k=2, d=d, n=n), seed=d + n))
