from selective_scan_base import SelectiveScanCases


class TestUnrolled(SelectiveScanCases):
    implementation = "unrolled"
    quick = ("test_directions", "test_large_steps_underflow_to_the_right_answer")
