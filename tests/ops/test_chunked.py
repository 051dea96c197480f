from selective_scan_base import SelectiveScanCases


class TestChunked(SelectiveScanCases):
    implementation = "chunked"
