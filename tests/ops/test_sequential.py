from selective_scan_base import SelectiveScanCases


class TestSequential(SelectiveScanCases):
    implementation = "sequential"
