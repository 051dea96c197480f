"""Marks what a class of `SelectiveScanCases` leaves to `.ci/nightly`."""

import pytest


def pytest_collection_modifyitems(items):
    """Marks the tests that are not in the attribute `quick` of their class as nightly."""
    for item in items:
        quick = getattr(item.cls, "quick", None)
        if quick is not None and item.originalname not in quick:
            item.add_marker(pytest.mark.nightly)
