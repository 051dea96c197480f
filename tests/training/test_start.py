"""What is checked before a run reads any image."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import medmamba_jax as mm
from medmamba_jax.predictor import _compiled
from medmamba_jax.training import start
from medmamba_jax.training.compilation import compile_beside
from medmamba_jax.training.loop import batches_of
from medmamba_jax.training.start import describe


class Unread:
    """Images that no one may read yet."""

    def __len__(self):
        return 40

    def __getitem__(self, place):
        raise AssertionError("an image was read")


@pytest.fixture
def unread(images):
    classes = images.class_names
    return mm.LabelledImages(Unread(), np.arange(40) % 2, classes, name="blobs", synthetic=True)


@pytest.mark.parametrize(
    ("section", "changes", "problem"),
    [
        ("train", {"freeze": "no.such.part"}, "'no.such.part' matches no parameter"),
        ("train", {"pos_weights": "balanced"}, r"train\.pos_weights is for multilabel labels"),
        ("model", {"patch_size": 32}, r"data\.image_size is 32x32 px and must be at least 64"),
        ("data", {"mean": (0.5, 0.5)}, r"data\.mean must have one value or one for each"),
        ("data", {"split_file": "no.csv"}, r"no file .*no\.csv"),
        ("data", {"exclude": "no.txt"}, r"no file .*no\.txt"),
    ],
)
def test_a_wrong_setting_fails_at_once(config, unread, tmp_path, section, changes, problem):
    built = config()
    part = dataclasses.replace(getattr(built, section), **changes)
    with pytest.raises(mm.UserError, match=problem):
        mm.train(dataclasses.replace(built, **{section: part}), tmp_path / "run", unread)
    assert not (tmp_path / "run").exists()


def test_a_run_of_other_settings_is_refused_at_once(config, unread, run_of_two_epochs):
    with pytest.raises(mm.UserError, match=r"holds another run: train\.lr was 0\.001, is 0\.01"):
        mm.train(config(lr=0.01), run_of_two_epochs, unread)


def test_a_split_file_with_a_class_that_train_lacks_fails_at_once(config, unread, tmp_path):
    rows = [f"image {i},{'val' if i % 2 else 'train'}" for i in range(40)]
    (tmp_path / "split.csv").write_text("\n".join(["path,split", *rows]))
    data = dataclasses.replace(config().data, split_file=str(tmp_path / "split.csv"))
    with pytest.raises(mm.UserError, match="val has 20 images of class 'bright', train has none"):
        mm.train(dataclasses.replace(config(), data=data), tmp_path / "run", unread)


def test_the_fit_of_a_run_is_the_one_of_its_predictions(config, images, run_of_two_epochs):
    """Broad images: their height is divided by 1.5, and they lie in the middle of 32 x 32 px."""
    built = config()
    built = dataclasses.replace(built, data=dataclasses.replace(built.data, fit="pad"))
    describe(built, images)[0].write(run_of_two_epochs)
    run = mm.load_run(run_of_two_epochs)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 48), np.uint8)
    padded = np.zeros((8, 32, 32), np.uint8)
    for i in range(8):
        small = Image.fromarray(pixels[i]).resize((32, 11), Image.Resampling.BILINEAR)
        padded[i, 10:21] = np.asarray(small)
    expected = run.predictor.predict(list(padded))
    np.testing.assert_array_equal(run.predictor.predict(list(pixels)), expected)
    losses = []
    for shown in (pixels, padded):
        split = mm.LabelledImages(shown, np.arange(8) % 2, images.class_names)
        losses.append(run.evaluate(mm.Dataset({"test": split}))["test"]["loss"])
    assert losses[0] == losses[1]
    stretched = dataclasses.replace(run.predictor.preprocessing, fit="stretch")
    other = dataclasses.replace(run.predictor, preprocessing=stretched).predict(list(pixels))
    assert np.abs(other - expected).max() > 1e-4


def test_runs_with_other_seeds_share_their_compiled_programs(
    config, images, tmp_path, monkeypatch, one_device
):
    programs, drawn = [], []

    def recorded(program, work):
        compiled, step = compile_beside(program, work)
        programs.append((program.as_text(), step.as_text()))
        return compiled, step

    monkeypatch.setattr(start, "compile_beside", recorded)
    for seed in (0, 1):
        built = config(seed=seed)
        data = dataclasses.replace(built.data, augmentation="strong")  # the step draws it
        with mm.start_run(
            dataclasses.replace(built, data=data), tmp_path / str(seed), images
        ) as run:
            assert run.spec.augment is not None and run.state.seed == seed
            drawn.append(run.state.params["head"]["kernel"])
    assert programs[0] == programs[1]
    assert not np.array_equal(*drawn)


def test_the_step_of_a_cpu_brings_a_compiled_validation(config, images, tmp_path):
    _compiled.cache_clear()
    with mm.start_run(config(), tmp_path, images) as run:
        step, before = run.train_step, run.predictor()
        compute = _compiled("logits", before.model, before.preprocessing, run.parallel)
        assert compute._cache_size() == 1
        with batches_of(run) as batches:
            run.state, _ = step(run.state, run.parallel.put_batch(next(batches)))
        after = run.predictor()
        after.logits(run.dataset.splits["val"])
        assert compute._cache_size() == 1
