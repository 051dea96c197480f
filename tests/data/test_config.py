import re

import pytest

from medmamba_jax.data import build, config
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.images import augmentation, preprocessing


def test_names_in_the_configuration_are_those_of_the_tables():
    assert config.SOURCES == (*build.FINDERS, *build.BUILDERS)
    assert config.AUGMENTATIONS == tuple(augmentation.POLICIES)
    for name in config.RESIZE_FILTERS:
        preprocessing.Preprocessing((32, 32), 1, name, (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", "imagenet"),
        ("root", None),
        ("splits", "by hand"),
        ("accept_changed_files", 1),
        ("image_size", 31),
        ("image_size", 64.0),
        ("image_size", (64, 64, 3)),
        ("image_size", True),
        ("resize", "box"),
        ("mean", 0.5),
        ("mean", ()),
        ("mean", (float("nan"),)),
        ("std", (float("inf"),)),
        ("std", (0.5, 0.0, 0.5)),
        ("window", "wide"),
        ("window", (5, 5)),
        ("window", (0, float("nan"))),
        ("window", "1,2,3"),
        ("frame", -2),
        ("frame", "all"),
        ("cache", True),
        ("cache_dir", None),
        ("augmentation", "heavy"),
        ("val_fraction", 0),
        ("val_fraction", 1.0),
        ("test_fraction", 0.9),  # together with the default 0.1 nothing is left
        ("split_seed", -1),
        ("allow_unreadable", 1),
        ("num_workers", -1),
        ("num_workers", 1.5),
        ("phantom_images", 29),
    ],
)
def test_a_bad_value_is_refused_by_its_field_name(field, value):
    with pytest.raises(ValueError, match=rf"^data\.{field} must be .*{re.escape(repr(value))}$"):
        DataConfig(**{field: value})


def test_lists_from_json_become_tuples():
    read = DataConfig(image_size=[64, 32], mean=[0.1, 0.2, 0.3], std=[1, 1, 1])
    assert (read.image_size, read.mean, read.std) == ((64, 32), (0.1, 0.2, 0.3), (1, 1, 1))


@pytest.mark.parametrize("window", ["-160,240", "(-160, 240)", (-160, 240), [-160, 240.0]])
def test_a_window_is_two_numbers_however_they_are_given(window):
    assert DataConfig(window=window).window == (-160.0, 240.0)
