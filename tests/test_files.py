"""Paths as users write them."""

import pathlib

import pytest

import medmamba_jax as mm
from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/runs") == pathlib.Path("/somewhere/runs")
    assert expanded("runs/~") == pathlib.Path("runs/~")


def test_a_user_without_a_home_folder_is_told_what_to_do():
    for call in (expanded, mm.load_run):
        with pytest.raises(UserError, match=r"~nobody-of-this-name.*set .* HOME"):
            call("~nobody-of-this-name/runs")
