"""Whose a run's folder is, and what `run.json` keeps; nothing is trained."""

import dataclasses
import json
import pathlib
import shutil

import pytest

import medmamba_jax as mm
from medmamba_jax.data import DataConfig, write_split_table
from medmamba_jax.models import abstract_model
from medmamba_jax.report.facts import read_run
from medmamba_jax.runs import RunDescription
from medmamba_jax.runs.description import FILE, FORMAT
from medmamba_jax.runs.workdir import SPLIT_TABLE, check_same_images, check_same_settings
from medmamba_jax.training.config import Config
from medmamba_jax.training.start import describe

FORMAT_1 = pathlib.Path(__file__).parent / "run_format_1.json"  # written at 7e4a3f5
DEFAULTS = Config().to_dict()


def check_same_run(workdir, description, images, defaults):
    old = check_same_settings(workdir, description.config, defaults)
    check_same_images(workdir, old, description, images)


@pytest.fixture
def description(config, images):
    """Returns a function (section, **changes) -> the description of a run on `images`."""

    def description(section="train", **changes):
        built = config()
        part = dataclasses.replace(getattr(built, section), **changes)
        return describe(dataclasses.replace(built, **{section: part}), images)[0]

    return description


def test_what_is_written_is_read(description, tmp_path):
    written = description(ema_decay=0.9)
    written.write(tmp_path)
    read = RunDescription.read(tmp_path)
    assert dataclasses.replace(read, config=written.config) == written
    assert read.config == json.loads(json.dumps(written.config)) and read.averaged
    assert json.loads((tmp_path / FILE).read_text())["format"] == FORMAT == 3


def test_more_epochs_need_a_schedule_that_does_not_know_the_last(description, images, tmp_path):
    description(epochs=1, schedule="cosine").write(tmp_path)
    with pytest.raises(mm.UserError, match=r"train\.epochs was 1, is 2"):
        check_same_run(tmp_path, description(epochs=2, schedule="cosine"), images, DEFAULTS)
    check_same_run(tmp_path, description(epochs=1, schedule="cosine"), images, DEFAULTS)
    description(epochs=1).write(tmp_path)
    check_same_run(tmp_path, description(epochs=2), images, DEFAULTS)


def test_how_images_travel_may_change(description, images, tmp_path):
    description().write(tmp_path)
    other = {"cache": "memory", "cache_dir": str(tmp_path / "cache"), "num_workers": 3}
    check_same_run(tmp_path, description("data", **other), images, DEFAULTS)
    with pytest.raises(mm.UserError, match=r"data\.resize was 'bilinear', is 'bicubic'"):
        check_same_run(tmp_path, description("data", resize="bicubic"), images, DEFAULTS)


def test_a_key_that_the_run_did_not_have_has_its_default(description, images, tmp_path, caplog):
    written = description()
    config = json.loads(json.dumps(written.config))
    del config["train"]["ema_decay"]
    config["train"]["of_tomorrow"] = 1
    dataclasses.replace(written, config=config).write(tmp_path)
    check_same_run(tmp_path, written, images, DEFAULTS)
    assert "settings that this version ignores: train.of_tomorrow" in caplog.text
    with pytest.raises(mm.UserError, match=r"train\.ema_decay was 0\.0, is 0\.9"):
        check_same_run(tmp_path, description(ema_decay=0.9), images, DEFAULTS)


def test_images_of_format_2_are_compared_by_name(description, images, tmp_path, caplog):
    old = description()
    digests = dict.fromkeys(old.images_sha256, "of another kind")
    dataclasses.replace(old, images_sha256=digests).write(tmp_path)
    values = json.loads((tmp_path / FILE).read_text()) | {"format": 2}
    del values["config"]["data"]["group_similar"]
    (tmp_path / FILE).write_text(json.dumps(values))
    assert RunDescription.read(tmp_path).config["data"]["group_similar"] == "off"
    write_split_table(tmp_path / SPLIT_TABLE, images)
    check_same_run(tmp_path, description(), images, DEFAULTS)
    assert len([r for r in caplog.records if "by name only" in r.getMessage()]) == 1
    train = images.splits["train"]
    other = dataclasses.replace(train, names=tuple(f"other {i}" for i in range(len(train))))
    with pytest.raises(mm.UserError, match="the images of split 'train' changed"):
        changed = mm.Dataset({**images.splits, "train": other})
        check_same_run(tmp_path, description(), changed, DEFAULTS)


def test_keys_of_a_later_version_are_named_in_one_line(description, tmp_path, caplog):
    description().write(tmp_path)
    values = json.loads((tmp_path / FILE).read_text())
    values["later"] = values["model"]["later"] = values["preprocessing"]["later"] = 1
    del values["model"]["remat"]
    (tmp_path / FILE).write_text(json.dumps(values))
    read = RunDescription.read(tmp_path)
    assert read.model == description().model
    assert len(caplog.records) == 1
    assert "does not know: later, model.later, preprocessing.later" in caplog.text


def test_a_network_of_a_script_is_named(description, tmp_path):
    description().write(tmp_path)
    values = json.loads((tmp_path / FILE).read_text())
    values["model"] = {"blocks": [1, 1], "num_classes": 2}
    values["config"]["model"]["variant"] = "of_a_script"
    (tmp_path / FILE).write_text(json.dumps(values))
    with pytest.raises(mm.UserError, match="does not have the network 'of_a_script': use the"):
        abstract_model(RunDescription.read(tmp_path).model)
    with pytest.raises(
        mm.UserError, match=r"only a MedMamba has a report, and .* trained 'of_a_script'"
    ):
        read_run(tmp_path)


def test_a_later_format_is_refused(description, tmp_path):
    description().write(tmp_path)
    values = json.loads((tmp_path / FILE).read_text()) | {"format": FORMAT + 1}
    (tmp_path / FILE).write_text(json.dumps(values))
    with pytest.raises(mm.UserError, match=r"has the format 4, .* up to 3: install a later"):
        RunDescription.read(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"experiment": 1}'])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(mm.UserError, match=r"run\.json is damaged"):
        RunDescription.read(tmp_path)


def test_a_run_of_format_1_is_read_in_todays_keys(description, images, tmp_path):
    shutil.copy(FORMAT_1, tmp_path / FILE)
    read = RunDescription.read(tmp_path)
    assert (read.format, read.task, read.class_names) == (1, "multiclass", ("dark", "bright"))
    assert read.augmented_on == "host"  # the file does not say it
    assert read.preprocessing.image_size == (32, 32) and not read.averaged
    data = DataConfig.from_dict(read.config["data"])
    assert (data.path, data.name, data.csv.group_column) == ("/data/table.csv", "", "person")
    assert data.augmentation == "light"
    assert Config.from_dict(read.config).model.architecture(2) == read.model
    with pytest.raises(mm.UserError, match="can be evaluated, but not continued"):
        check_same_run(tmp_path, description(), images, DEFAULTS)


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        mm.load_run(tmp_path)
