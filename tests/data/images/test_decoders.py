"""What decides pixels is part of the names of all that is kept of them."""

from importlib import metadata

import numpy as np
import PIL
import pytest

from medmamba_jax.data import DataConfig, LabelledImages, Preprocessing
from medmamba_jax.data.first_pass import first_pass
from medmamba_jax.data.images.decoders import decoder_versions

PREPROCESSING = Preprocessing(
    image_size=(8, 8), channels=1, resize_filter="bilinear", mean=(0.5,), std=(0.5,)
)
SPLIT = LabelledImages(
    list(np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)), [0, 1] * 2
)


def test_versions_are_those_that_the_libraries_tell():
    versions = decoder_versions()
    assert versions["pillow"] == PIL.__version__
    for name in ("pydicom", "imagecodecs"):
        library = pytest.importorskip(name)
        assert versions[name] == library.__version__


def test_what_is_not_installed_is_left_out(monkeypatch):
    def version(name):
        if name != "pillow":
            raise metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(metadata, "version", version)
    assert decoder_versions() == {"pillow": "1.2"}


@pytest.fixture(params=["pillow", "pydicom", "imagecodecs"])
def another_version(request, monkeypatch):
    """Returns a function after whose call the version of a library is another."""
    version = metadata.version

    def another(name):
        return "0.0" if name == request.param else version(name)

    return lambda: monkeypatch.setattr(metadata, "version", another)


def test_what_is_kept_has_another_name(another_version, tmp_path):
    config = DataConfig(cache="disk", cache_dir=str(tmp_path))

    def files():
        first_pass(SPLIT, PREPROCESSING, config)
        return [len([*tmp_path.rglob(f"*.{ending}")]) for ending in ("pixels", "npy")]

    assert files() == files() == [1, 1]
    another_version()
    assert files() == [2, 2]
