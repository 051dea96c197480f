from selective_scan_base import SelectiveScanCases


class TestAssociative(SelectiveScanCases):
    implementation = "associative"
