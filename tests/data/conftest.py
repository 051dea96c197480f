"""Small image files for the tests of the data package."""

import argparse
import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.cli.public_sets import add_list, add_prepare
from medmamba_jax.data.inspection.command import add_inspect


def encode(pixels, format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(name="encode")
def encode_fixture():
    """Returns a function (uint8 array, format, **Pillow options) -> bytes of an image file."""
    return encode


@pytest.fixture
def noise_png():
    """Returns a function (seed) -> bytes of a small PNG that no other seed gives."""

    def noise_png(seed, shape=(12, 10)):
        return encode(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))

    return noise_png


@pytest.fixture
def command():
    """Returns a function (*arguments) -> lines that a subcommand of `medmamba` prints."""
    parser = argparse.ArgumentParser(prog="medmamba")
    subcommands = parser.add_subparsers(required=True)
    for add in (add_inspect, add_list, add_prepare):
        add(subcommands)

    def command(*arguments):
        options = parser.parse_args([str(argument) for argument in arguments])
        printed = options.run(options)
        return (printed if isinstance(printed, str) else printed[0]).splitlines()

    return command


@pytest.fixture
def real_data():
    """The folder of real images beside the checkout, which not everybody has."""
    folder = pathlib.Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} does not exist")
    return folder
