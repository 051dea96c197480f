from selective_scan_base import SelectiveScanCases


class TestSequential(SelectiveScanCases):
    implementation = "sequential"
    quick = ("test_directions", "test_lengths", "test_float64_is_computed_in_float64")
