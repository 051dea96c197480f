import pytest
from selective_scan_base import SelectiveScanCases, make_inputs

from medmamba_jax.ops.scan.shapes import ScanShape


class TestAssociative(SelectiveScanCases):
    implementation = "associative"

    # It treats channels and states alike, so that few widths stand for all. Each compiles for long.
    @pytest.mark.parametrize(("d", "n"), [(1, 8), (32, 1)])
    def test_widths(self, d, n):
        self.check(make_inputs(ScanShape(b=1, l=37, k=2, d=d, n=n), seed=d + n))

    @pytest.mark.parametrize("length", [1, 7, 50])
    def test_lengths(self, length):
        self.check(make_inputs(self.shape(b=2, l=length, k=self.k), seed=length))

    @pytest.mark.slow
    def test_a_long_map(self):
        self.check(make_inputs(self.shape(b=2, l=784, k=self.k), seed=784))
