"""The maps against closed forms, on classifiers whose gradients are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy.signal import correlate2d

from medmamba_jax.explanation.methods import (
    Network,
    grad_cam,
    grad_cam_plus_plus,
    integrated_gradients,
    occlusion,
    receptive_field,
)

BLACK = jnp.array([-1.0, -0.5])
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(3, 8, 12, 2)), jnp.float32)
CLASSES = jnp.array([2, 0, 1])
MIXED = jnp.asarray(RNG.normal(size=(2, 5)), jnp.float32)
HEAD = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
EXACT = jax.lax.Precision.HIGHEST


def mixed(images, stage=0):
    """A map (b, h, w, 5) of stride 1."""
    return jnp.matmul(images, MIXED, precision=EXACT)


def halved(images, stage=0):
    """A map (b, h / 4, w / 4, 5)."""
    return mixed(images.reshape(len(images), 2, 4, 3, 4, 2).mean((2, 4)))


def pooled_head(maps, stage=0):
    return jnp.matmul(maps.mean((1, 2)), HEAD, precision=EXACT)


def computed(method, network, images=IMAGES, classes=CLASSES, stage=0):
    return np.asarray(jax.jit(lambda x, c: method(network, x, c, stage))(images, classes))


def test_behind_pooling_and_a_linear_head_the_weights_are_those_of_the_head():
    """W[c] / (h w), the gradient of the mean over h w pixels."""
    found = computed(grad_cam, Network(mixed, pooled_head, (1,), BLACK))
    for one, image, c in zip(found, np.asarray(IMAGES), CLASSES, strict=True):
        expected = np.maximum(image @ np.asarray(MIXED) @ np.asarray(HEAD)[:, c] / (8 * 12), 0)
        assert expected.max() > 0
        np.testing.assert_allclose(one, expected, atol=1e-6)


def test_a_small_map_is_enlarged_as_pillow_does():
    found = computed(grad_cam, Network(halved, pooled_head, (4,), BLACK))
    maps = np.asarray(halved(IMAGES))
    for one, small, c in zip(found, maps, CLASSES, strict=True):
        heat = np.maximum(small @ np.asarray(HEAD)[:, c] / 6, 0).astype(np.float32)
        large = Image.fromarray(heat).resize((12, 8), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(one, np.asarray(large), atol=1e-6)


def test_grad_cam_plus_plus_is_the_formula_of_the_paper():
    """Equation 19 by the derivatives of the logit, on maps that come out of a ReLU."""
    network = Network(lambda x, s: jax.nn.relu(mixed(x)), pooled_head, (1,), BLACK)
    found = computed(grad_cam_plus_plus, network)
    maps, pixels = np.asarray(network.features(IMAGES, 0), np.float64), 8 * 12
    for one, of_image, c in zip(found, maps, CLASSES, strict=True):
        slope = np.asarray(HEAD, np.float64)[:, c] / pixels  # of the logit, for each channel
        alpha = slope**2 / (2 * slope**2 + of_image.sum((0, 1)) * slope**3)
        expected = np.maximum(of_image @ (pixels * alpha * np.maximum(slope, 0)), 0)
        assert expected.max() > 0
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)


def test_grad_cam_plus_plus_is_finite_where_maps_are_negative():
    """The paper's own denominator is 0 here."""
    network = Network(lambda x, s: x, lambda m, s: m.mean((1, 2)), (1,), BLACK)
    found = computed(grad_cam_plus_plus, network, jnp.full((1, 2, 2, 1), -2.0), jnp.array([0]))
    assert np.isfinite(found).all()


def test_integrated_gradients_add_up_to_the_difference_of_logits():
    def curved(maps, stage=0):
        return jnp.tanh(maps).mean((1, 2)) @ HEAD + jax.nn.silu(maps).sum((1, 2, 3))[:, None]

    network = Network(mixed, curved, (1,), BLACK)
    maps = computed(integrated_gradients, network)
    black = network.logits(jnp.broadcast_to(BLACK, IMAGES.shape))
    difference = np.asarray(network.logits(IMAGES) - black)[np.arange(3), CLASSES]
    np.testing.assert_allclose(maps.sum((1, 2)), difference, rtol=0.01)


def test_integrated_gradients_of_a_square_by_hand():
    """The integral of 2 (b + t d) d over t is x^2 - b^2 for each value x and its black b."""
    network = Network(
        lambda x, s: x, lambda m, s: jnp.square(m).sum((1, 2, 3))[:, None], (1,), BLACK
    )
    found = computed(integrated_gradients, network, classes=jnp.zeros(3, int))
    np.testing.assert_allclose(found, (IMAGES**2 - BLACK**2).sum(-1), rtol=1e-4, atol=1e-4)


def test_occlusion_of_a_linear_model_by_hand():
    """What a patch takes away is the sum of weight times value under it."""
    images = RNG.normal(size=(2, 16, 24, 1)).astype(np.float32)
    weight = RNG.normal(size=(16, 24)).astype(np.float32)

    def linear(maps, stage=0):
        return jnp.stack([(maps[..., 0] * weight).sum((1, 2)), maps.sum((1, 2, 3))], axis=1)

    network = Network(lambda x, s: x, linear, (1,), jnp.zeros(1))
    found = computed(occlusion, network, jnp.asarray(images), jnp.array([0, 1]))
    side, step = 2, 1  # an eighth of 16, and half of that
    for row, share in enumerate([images[0, ..., 0] * weight, images[1, ..., 0]]):
        total, count = np.zeros((16, 24)), np.zeros((16, 24))
        for y in range(0, 16 - side + 1, step):
            for x in range(0, 24 - side + 1, step):
                total[y : y + side, x : x + side] += share[y : y + side, x : x + side].sum()
                count[y : y + side, x : x + side] += 1
        np.testing.assert_allclose(found[row], total / count, atol=1e-4)


def test_occlusion_covers_every_pixel():
    height, width = 50, 33
    network = Network(lambda x, s: x, lambda m, s: m.sum((1, 2, 3))[:, None], (1,), jnp.zeros(1))
    found = computed(occlusion, network, jnp.ones((1, height, width, 1)), jnp.array([0]))
    side = max(1, min(height, width) // 8)
    np.testing.assert_allclose(found, side**2, rtol=1e-4)


def test_the_receptive_field_of_two_convolutions_by_hand():
    """The gradient of the centre is the one kernel correlated with the other."""
    first, second = RNG.normal(size=(2, 3, 3)).astype(np.float32)

    def convolved(images, stage):
        for kernel in (first, second)[: stage + 1]:
            kernel = jnp.asarray(kernel)[..., None, None]
            dimensions = ("NHWC", "HWIO", "NHWC")
            images = jax.lax.conv_general_dilated(
                images, kernel, (1, 1), "SAME", dimension_numbers=dimensions
            )
        return images

    network = Network(convolved, lambda m, s: m.mean((1, 2)), (1, 1), jnp.zeros(1))
    images = jnp.ones((1, 9, 9, 1))
    one = np.zeros((9, 9))
    one[3:6, 3:6] = np.abs(first)
    np.testing.assert_allclose(computed(receptive_field, network, images)[0], one, atol=1e-6)
    both = np.zeros((9, 9))
    both[2:7, 2:7] = np.abs(correlate2d(first, second[::-1, ::-1], "full"))
    np.testing.assert_allclose(
        computed(receptive_field, network, images, stage=1)[0], both, atol=1e-5
    )


def test_what_a_map_lost_at_the_border_repeats_its_last_pixel():
    network = Network(
        lambda x, s: x[:, :8, :8].reshape(1, 2, 4, 2, 4, 1).mean((2, 4)),
        lambda m, s: m.sum((1, 2, 3))[:, None],
        (4,),
        jnp.zeros(1),
    )
    image = jnp.arange(100.0).reshape(1, 10, 10, 1)
    found = computed(grad_cam, network, image, jnp.array([0]))[0]
    assert found.shape == (10, 10) and found.max() > 0
    np.testing.assert_array_equal(found[8:, :8], np.tile(found[7, :8], (2, 1)))
