from selective_scan_base import SelectiveScanCases


class TestAssociative(SelectiveScanCases):
    implementation = "associative"
    quick = ("test_directions", "test_without_softplus")
