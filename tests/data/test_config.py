import json
import re
import sys

import pytest
from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from medmamba_jax.data.build import find, find_images
from medmamba_jax.data.config import CsvConfig, DataConfig, PhantomConfig, PublicConfig
from medmamba_jax.data.images import augmentation, preprocessing
from medmamba_jax.data.reading import cache_places
from medmamba_jax.data.split_names import PUBLIC_SPLITS
from medmamba_jax.errors import UserError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", None),
        ("name", None),
        ("csv", {}),
        ("image_size", 0),
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
        ("audit", "no"),
        ("num_workers", -1),
        ("num_workers", 1.5),
    ],
)
def test_a_bad_value_is_refused_by_its_field_name(field, value):
    with pytest.raises(ValueError, match=rf"^data\.{field} must be .*{re.escape(repr(value))}$"):
        DataConfig(**{field: value})


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("folder", "group_pattern", "p[0-9]+"),
        ("csv", "path_column", ""),
        ("csv", "label_column", "a,a"),
        ("csv", "label_column", ()),
        ("csv", "split_column", None),
        ("csv", "weight_column", "label"),
        ("public", "splits", "by hand"),
        ("public", "accept_changed_files", 1),
        ("phantom", "images", 29),
    ],
)
def test_a_bad_value_of_a_source_is_refused_by_its_field_name(section, field, value):
    with pytest.raises(UserError, match=rf"^data\.{section}\.{field} must be .*; got "):
        DataConfig.from_dict({section: {field: value}})


def test_a_key_that_does_not_exist_is_refused_by_its_section():
    with pytest.raises(UserError, match=r"^data has no key 'source'"):
        DataConfig.from_dict({"source": "csv"})
    with pytest.raises(UserError, match=r"^data\.csv has no key 'table'"):
        DataConfig.from_dict({"csv": {"table": "my.csv"}})


def test_dictionaries_and_back():
    config = DataConfig(
        path="my.csv",
        csv=CsvConfig(label_column=("edema", "effusion")),
        phantom=PhantomConfig(images=40),
        image_size=(64, 32),
        window=(-160, 240),
    )
    assert DataConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert DataConfig.from_dict({}) == DataConfig()


def test_names_that_a_script_adds_to_a_table_are_accepted(monkeypatch):
    tables = {
        "augmentation": augmentation.POLICIES,
        "resize": preprocessing.RESIZE_FILTERS,
        "cache": cache_places.CACHES,
    }
    for field, table in tables.items():
        with pytest.raises(UserError, match=rf"data\.{field} must be one of"):
            DataConfig(**{field: "mine"})
        monkeypatch.setitem(table, "mine", next(iter(table.values())))
        assert getattr(DataConfig(**{field: "mine"}), field) == "mine"
    monkeypatch.setitem(PUBLIC_SPLITS, "mine", PUBLIC_SPLITS["paper"])
    assert PublicConfig(splits="mine").splits == "mine"


def test_every_key_can_be_a_flag(monkeypatch):
    typed = {
        "data.path": "my.csv",
        "data.csv.label_column": "a,b",
        "data.folder.group_pattern": "(p[0-9]+)_",
        "data.public.accept_changed_files": "true",
        "data.phantom.images": "60",
        "data.window": "-160,240",
        "data.mean": "(0.1, 0.2, 0.3)",
        "data.audit": "false",
    }
    arguments = ["program", *(f"--config.{key}={value}" for key, value in typed.items())]
    monkeypatch.setattr(sys, "argv", arguments)  # ml_collections reads it
    flags = absl_flags.FlagValues()
    config = config_flags.DEFINE_config_dict(
        "config", ConfigDict({"data": DataConfig().to_dict()}), flag_values=flags
    )
    flags(arguments)
    read = DataConfig.from_dict(config.value.data.to_dict())
    assert read.path == "my.csv" and read.csv.label_columns == ("a", "b")
    assert read.folder.group_pattern == "(p[0-9]+)_" and read.public.accept_changed_files
    assert read.phantom.images == 60 and not read.audit
    assert (read.window, read.mean) == ((-160.0, 240.0), (0.1, 0.2, 0.3))


def test_paths_become_absolute_and_hold_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    config = DataConfig(
        path="images",
        split_file="../split.csv",
        cache_dir="~/cache",
        public=PublicConfig(data_dir="/data/tfds"),
    ).with_absolute_paths()
    assert config.path == str(tmp_path / "images")
    assert config.split_file == str(tmp_path / ".." / "split.csv")
    assert config.cache_dir == "/home/someone/cache"
    assert (config.public.data_dir, config.public.manual_dir) == ("/data/tfds", "")
    assert config.with_absolute_paths() == config
    assert DataConfig().with_absolute_paths() == DataConfig()


def test_lists_from_json_become_tuples():
    read = DataConfig.from_dict({"image_size": [64, 32], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]})
    assert (read.image_size, read.mean, read.std) == ((64, 32), (0.1, 0.2, 0.3), (1, 1, 1))


@pytest.mark.parametrize("window", ["-160,240", "(-160, 240)", (-160, 240), [-160, 240.0]])
def test_a_window_is_two_numbers_however_they_are_given(window):
    assert DataConfig(window=window).window == (-160.0, 240.0)


@pytest.mark.parametrize(
    "use",
    [
        lambda path: DataConfig(path=path).with_absolute_paths(),
        lambda path: DataConfig(cache_dir=path).cache_folder,
        lambda path: PublicConfig(data_dir=path).data_folder,
        lambda path: find_images(DataConfig(path=path)),
        lambda path: find_images(DataConfig(path=f"{path}.csv")),
        lambda path: find(DataConfig(name="phantom", split_file=path)),
        lambda path: find(DataConfig(name="phantom", exclude=path)),
    ],
)
def test_a_home_folder_that_is_not_there_is_named(use):
    with pytest.raises(UserError, match=r"~nobody-of-this-name.*set .* HOME"):
        use("~nobody-of-this-name/images")
