"""Runs are trained on one device."""

import pytest


@pytest.fixture(autouse=True)
def only_one_device(one_device):
    """Runs every test here on the first device; `monkeypatch.undo()` gives the others back."""
