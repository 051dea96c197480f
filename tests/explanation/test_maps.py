"""`mm.explain` on trained models: the maps, the sanity check of Adebayo et al., and refusals."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import spearmanr

import medmamba_jax as mm
from medmamba_jax.explanation import METHODS

# The others compile for longer.
ALL = [
    pytest.param(name, marks=[] if name == "grad_cam" else pytest.mark.nightly) for name in METHODS
]


@pytest.fixture(scope="module")
def predictor(trained):
    with pytest.MonkeyPatch.context() as monkeypatch:
        first = jax.devices()[:1]
        monkeypatch.setattr(jax, "devices", lambda *_: first)
        return mm.load_run(trained[0]).predictor


@pytest.fixture
def pixels(images):
    """Blobs with a bright square, so that a map has something to show."""
    found = np.stack([images.splits["test"].read(row) for row in range(5)])
    found[:, 4:14, 18:28] = 250
    return list(found)


def weights_of(predictor):
    return np.asarray(predictor.params["head"]["kernel"]), predictor.module()


def normalised(predictor, pixels):
    rgb = np.repeat(np.stack(pixels)[..., None], 3, axis=3).astype(np.float32) / 255
    mean, std = predictor.preprocessing.mean, predictor.preprocessing.std
    return (rgb - np.float32(mean)) / np.float32(std)


def test_the_map_of_the_last_stage_is_the_head_on_its_features(predictor, pixels):
    """The head is linear behind mean pooling, so the CAM's weights are W[c] / (h w)."""
    found = mm.explain(predictor, pixels)
    kernel, module = weights_of(predictor)
    maps = np.asarray(module(normalised(predictor, pixels), features_only=True)[-1])
    for one, features, c in zip(found.maps, maps, found.classes, strict=True):
        small = np.maximum(features @ kernel[:, c] / features[..., 0].size, 0)
        stride = 32 // len(small)
        # In the corner, and where nothing but one pixel of the small map acts.
        assert one[0, 0] == pytest.approx(small[0, 0], rel=1e-3, abs=1e-6)
        assert one[-1, -1] == pytest.approx(small[-1, -1], rel=1e-3, abs=1e-6)
        assert one.shape == (32, 32) and stride == 8 and one.max() > 0


@pytest.mark.parametrize("method", ALL)
def test_what_is_returned(predictor, pixels, method):
    found = mm.explain(predictor, pixels, method=method)
    assert found.maps.shape == (5, 32, 32) and found.maps.dtype == np.float32
    assert np.isfinite(found.maps).all() and np.ptp(found.maps) > 0
    assert METHODS[method].signed or found.maps.min() >= 0
    np.testing.assert_array_equal(found.probabilities, predictor.predict(pixels))
    np.testing.assert_array_equal(found.classes, found.probabilities.argmax(1))
    assert found.names == tuple(f"image {i}" for i in range(5))


@pytest.mark.nightly
def test_one_image_batches_and_a_named_class(predictor, pixels):
    whole = mm.explain(predictor, pixels, class_name="bright")
    assert whole.explained == ("bright",) * 5
    single = dataclasses.replace(predictor, batch_size=1)
    parts = mm.explain(single, pixels, class_name="bright")
    np.testing.assert_allclose(parts.maps, whole.maps, rtol=1e-3, atol=1e-6)
    alone = mm.explain(predictor, pixels[3], class_name="bright")
    np.testing.assert_allclose(alone.maps[0], whole.maps[3], rtol=1e-3, atol=1e-6)
    other = mm.explain(predictor, pixels, class_name="dark")
    assert not np.allclose(other.maps, whole.maps, atol=1e-4)


@pytest.mark.nightly
def test_stages_have_maps_of_their_own(predictor, pixels):
    first, last = (mm.explain(predictor, pixels, stage=stage).maps for stage in (0, 1))
    np.testing.assert_array_equal(last, mm.explain(predictor, pixels).maps)
    np.testing.assert_array_equal(first, mm.explain(predictor, pixels, stage=-2).maps)
    assert not np.allclose(first, last)


@pytest.mark.slow
def test_integrated_gradients_add_up(predictor, pixels):
    found = mm.explain(predictor, pixels, method="integrated_gradients", class_name="bright")
    images = [*pixels, np.zeros((32, 32), np.uint8)]
    *logits, black = predictor.logits(predictor.split_of(images))[:, 1]
    np.testing.assert_allclose(found.maps.sum((1, 2)), np.array(logits) - black, rtol=0.01)


def shuffled(tree, seed=0):
    """The same values of each tensor in another order."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.permutation(np.asarray(x).ravel()).reshape(x.shape).astype(x.dtype), tree
    )


def alike(one, other):
    """The mean rank correlation of the maps of images."""
    both = zip(one, other, strict=True)
    return np.mean([spearmanr(a.ravel(), b.ravel()).statistic for a, b in both])


@pytest.mark.parametrize("method", ALL)
def test_the_map_depends_on_what_was_learned(predictor, pixels, method):
    """Adebayo et al. 2018: a map that random weights do not change explains no model.

    The map of a filter for edges would stay as it is. To show that the test can fail, it also
    compares with slightly changed weights.
    """
    asked = {"method": method, "class_name": "bright" if METHODS[method].of_class else None}
    if METHODS[method].by_stage:
        asked["stage"] = 0  # the last map has 16 pixels, and few ranks
    inside = np.s_[:]  # where the map can be other than 0
    if method == "receptive_field":  # of `tiny`, one patch
        inside = np.s_[:, 16:20, 16:20]
    of_trained = mm.explain(predictor, pixels, **asked).maps[inside]
    nearly = jax.tree.map(lambda x: x * 1.001, predictor.params)
    of_similar = mm.explain(dataclasses.replace(predictor, params=nearly), pixels, **asked).maps[
        inside
    ]
    assert alike(of_trained, of_similar) > 0.95
    random = dataclasses.replace(predictor, params=shuffled(predictor.params))
    assert alike(of_trained, mm.explain(random, pixels, **asked).maps[inside]) < 0.6


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"method": "lime"}, "must be one of grad_cam, grad_cam"),
        ({"class_name": "grey"}, "no class 'grey'; its classes are dark, bright"),
        ({"stage": 2}, "2 stages, 0 to 1"),
        ({"stage": 0, "method": "occlusion"}, "looks at no stage"),
        ({"class_name": "dark", "method": "receptive_field"}, "explains no class"),
    ],
)
def test_refusals(predictor, pixels, changes, problem):
    with pytest.raises(mm.UserError, match=problem):
        mm.explain(predictor, pixels, **changes)


def test_a_model_of_marks(predictor, pixels):
    """Of a multi-label model, the likeliest class; of one output, that one."""
    marks = dataclasses.replace(predictor, task="multilabel")
    found = mm.explain(marks, pixels)
    np.testing.assert_array_equal(found.classes, found.probabilities.argmax(1))


@pytest.mark.slow
def test_the_blocks_of_medmamba(mamba_run, pixels, one_device):
    """Splitting the network at a stage changes no logit."""
    predictor = mm.load_run(mamba_run).predictor
    module, x = predictor.module(), normalised(predictor, pixels[:1])

    @jax.jit
    def both_ways(x):
        maps = module(x, features_only=True)
        return module(x), [module.continued(found, stage) for stage, found in enumerate(maps)]

    whole, split = both_ways(x)
    for logits in split:
        np.testing.assert_allclose(logits, whole, atol=1e-6)


@pytest.mark.nightly
def test_integrated_gradients_of_the_blocks_add_up(mamba_run, pixels, one_device):
    predictor = mm.load_run(mamba_run).predictor
    one, black = pixels[0], np.zeros_like(pixels[0])
    found = mm.explain(predictor, one, method="integrated_gradients", class_name="dark")
    logits = predictor.logits(predictor.split_of([one, black]))
    np.testing.assert_allclose(softmax(logits[:1], axis=1), found.probabilities, rtol=1e-5)
    assert found.maps.sum() == pytest.approx(logits[0, 0] - logits[1, 0], rel=0.01)
    cam = mm.explain(predictor, one, method="grad_cam", stage=0, class_name="dark")
    assert np.ptp(cam.maps) > 0
