"""The maps: functions of arrays, for use inside a jitted function.

The score that a map explains is the logit of a class, before softmax or sigmoid. To add a map,
write a function with the arguments of `grad_cam`, and add a row to `METHODS`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

STEPS = (64, 256)  # along the path of `integrated_gradients`: most often, and at most
TOLERANCE = 0.01  # of the sum of a map of `integrated_gradients`, relative to what it should be
PATCHES = 8  # patches of `occlusion` that fit side by side


@dataclasses.dataclass(frozen=True)
class Network:
    """A classifier as functions of normalised images.

    Attributes:
        features: (images (b, h, w, c), stage) -> the map of that stage (b, h_i, w_i, c_i).
        classify: (the map of a stage, stage) -> logits (b, K).
        strides: for each stage, the pixels that a pixel of its map stands for.
        black: what a black pixel is after normalisation, float32 (c,).
    """

    features: Callable[[jax.Array, int], jax.Array]
    classify: Callable[[jax.Array, int], jax.Array]
    strides: tuple[int, ...]
    black: jax.Array

    def logits(self, images: jax.Array) -> jax.Array:
        """(b, h, w, c) to (b, K)."""
        last = len(self.strides) - 1
        return self.classify(self.features(images, last), last)


def grad_cam(network: Network, images: jax.Array, classes: jax.Array, stage: int) -> jax.Array:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2).

    Each channel of a stage's map is weighted by the mean of the gradient of the class's logit. The
    weighted sum is enlarged to the size of the images, and what is negative becomes 0.

    Args:
        network: the classifier.
        images: float32 (b, h, w, c), normalised.
        classes: int32 (b,), the class that each map explains.
        stage: index of the stage, from 0.

    Returns:
        float32 (b, h, w), 0 or more, of no unit.
    """
    maps, gradients = _map_and_gradient(network, images, classes, stage)
    weights = gradients.mean((1, 2))
    return _enlarged(_weighted(maps, weights), network.strides[stage], images)


def grad_cam_plus_plus(
    network: Network, images: jax.Array, classes: jax.Array, stage: int
) -> jax.Array:
    """Grad-CAM++ (Chattopadhay et al. 2018, equations 10 and 19, of the exponential of the logit).

    The paper takes maps that come out of a ReLU. The map of a stage of MedMamba has negative values
    too, of which the denominator takes 0. So it cannot vanish where a gradient is positive. The
    factor exp(logit), which is the same for a whole image, is left out.

    Args: as for `grad_cam`.

    Returns:
        float32 (b, h, w), 0 or more, of no unit.
    """
    maps, gradients = _map_and_gradient(network, images, classes, stage)
    positive = jax.nn.relu(gradients)
    total = jax.nn.relu(maps).sum((1, 2), keepdims=True)
    # g^2 / (2 g^2 + total g^3) with g^2 cancelled; where g is not positive, it is multiplied by 0.
    weights = (positive / (2 + total * positive)).sum((1, 2))
    return _enlarged(_weighted(maps, weights), network.strides[stage], images)


def integrated_gradients(
    network: Network, images: jax.Array, classes: jax.Array, stage: int
) -> jax.Array:
    """Integrated gradients (Sundararajan et al. 2017, equation 1) from a black image.

    The gradient of the class's logit is integrated along the straight path from black to the image,
    multiplied by the difference, and added up over the channels. So the sum of a map is the logit
    of the image minus that of a black image. The midpoint rule takes 64 steps, and 256 unless this
    is so within 1 % for every image of the batch. The logit of a deep network can change abruptly
    along the path; then an error of some percent remains.

    Args:
        network: the classifier.
        images: float32 (b, h, w, c), normalised.
        classes: int32 (b,), the class that each map explains.
        stage: is not used.

    Returns:
        float32 (b, h, w), of the unit of a logit. Positive pixels raise it.
    """
    del stage
    difference = images - network.black

    def score(images: jax.Array) -> jax.Array:
        return _chosen(network.logits(images), classes)

    def finer(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        steps = 4 * state[0]

        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            place = network.black + (step + 0.5) / steps * difference
            return total + jax.grad(lambda x: score(x).sum())(place)

        return steps, jax.lax.fori_loop(0, steps, add, jnp.zeros_like(images)) / steps

    def unfinished(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        steps, mean = state
        error = jnp.abs((difference * mean).sum((1, 2, 3)) - expected)
        rough = (error > TOLERANCE * jnp.abs(expected)).any()
        return (steps < STEPS[0]) | ((steps < STEPS[1]) & rough)

    black = jnp.broadcast_to(network.black, images.shape)
    of_image, of_black = jax.lax.map(score, jnp.stack([images, black]))
    expected = of_image - of_black
    nothing = jnp.int32(STEPS[0] // 4), jnp.zeros_like(images)
    _, mean = jax.lax.while_loop(unfinished, finer, nothing)
    return (difference * mean).sum(-1)


def occlusion(network: Network, images: jax.Array, classes: jax.Array, stage: int) -> jax.Array:
    """Occlusion (Zeiler and Fergus 2014, section 4.2).

    A square patch covers one part of the image after another. Its side is an eighth of the image's
    shorter side, and it moves by half of its side. It has the mean colour of the run's
    preprocessing, which is 0 after normalisation. Each pixel holds the mean, over the patches that
    cover it, of how much the logit of the class falls.

    Args: as for `integrated_gradients`.

    Returns:
        float32 (b, h, w), of the unit of a logit. Where it is positive, covering lowers the logit.
    """
    del stage
    height, width = images.shape[1:3]
    side = max(1, min(height, width) // PATCHES)
    corners = [(y, x) for y in _starts(height, side) for x in _starts(width, side)]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    before = _chosen(network.logits(images), classes)

    def cover(
        totals: tuple[jax.Array, jax.Array], corner: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        down, across = rows - corner[0], columns - corner[1]
        covered = (down >= 0) & (down < side) & (across >= 0) & (across < side)
        after = network.logits(jnp.where(covered[..., None], 0, images))
        fall = before - _chosen(after, classes)
        return (totals[0] + fall[:, None, None] * covered, totals[1] + covered), None

    nothing = jnp.zeros(images.shape[:3]), jnp.zeros((height, width))
    (total, count), _ = jax.lax.scan(cover, nothing, jnp.array(corners))
    return total / count


def receptive_field(
    network: Network, images: jax.Array, classes: jax.Array, stage: int
) -> jax.Array:
    """The effective receptive field (Luo et al. 2016, section 2) of the centre of a stage's map.

    It is the absolute gradient, by each pixel of the image, of the sum of the channels of one pixel
    of the map: the one in the centre, or the lower right one of the four in the centre. The mean
    over many images is the field of the model.

    Args:
        network: the classifier.
        images: float32 (b, h, w, c), normalised.
        classes: is not used.
        stage: index of the stage, from 0.

    Returns:
        float32 (b, h, w), 0 or more, added up over the channels of the image.
    """
    del classes

    def centre(images: jax.Array) -> jax.Array:
        maps = network.features(images, stage).astype(jnp.float32)
        return maps[:, maps.shape[1] // 2, maps.shape[2] // 2].sum()

    return jnp.abs(jax.grad(centre)(images)).sum(-1)


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        title: the name in pictures.
        compute: (network, images, classes, stage) -> maps, see `grad_cam`.
        by_stage: whether the map depends on the stage.
        signed: whether values can be negative.
        unit: what the numbers are, for the legend; "" if they have no unit.
        of_class: whether the map explains a class.
    """

    title: str
    compute: Callable[[Network, jax.Array, jax.Array, int], jax.Array]
    _: dataclasses.KW_ONLY
    by_stage: bool
    signed: bool
    unit: str
    of_class: bool = True


# Name in the command line and in `explain` -> how a map is computed.
METHODS = {
    "grad_cam": Method("Grad-CAM", grad_cam, by_stage=True, signed=False, unit=""),
    "grad_cam++": Method("Grad-CAM++", grad_cam_plus_plus, by_stage=True, signed=False, unit=""),
    "integrated_gradients": Method(
        "Integrated gradients",
        integrated_gradients,
        by_stage=False,
        signed=True,
        unit="part of the logit",
    ),
    "occlusion": Method(
        "Occlusion", occlusion, by_stage=False, signed=True, unit="fall of the logit"
    ),
    "receptive_field": Method(
        "Effective receptive field",
        receptive_field,
        by_stage=True,
        signed=False,
        unit="gradient",
        of_class=False,
    ),
}


def _map_and_gradient(
    network: Network, images: jax.Array, classes: jax.Array, stage: int
) -> tuple[jax.Array, jax.Array]:
    """Returns a stage's map, and the gradient of the class's logit by it, both in float32."""
    maps = network.features(images, stage)
    score, pull = jax.vjp(lambda maps: _chosen(network.classify(maps, stage), classes), maps)
    (gradients,) = pull(jnp.ones_like(score))  # images do not act on each other's scores
    return maps.astype(jnp.float32), gradients.astype(jnp.float32)


def _chosen(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """(b, K) to (b,): the logit of each image's class."""
    return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]


def _weighted(maps: jax.Array, weights: jax.Array) -> jax.Array:
    weighted = jnp.einsum("bhwc,bc->bhw", maps, weights, precision=jax.lax.Precision.HIGHEST)
    return jax.nn.relu(weighted)


def _enlarged(maps: jax.Array, stride: int, images: jax.Array) -> jax.Array:
    """Enlarges maps (b, h_i, w_i) to the images; what lies beyond the last pixel repeats it."""
    (b, *small), large = maps.shape, images.shape[1:3]
    size = [stride * n for n in small]
    maps = jax.image.resize(maps, (b, *size), "linear")
    beyond = [(0, max(whole - n, 0)) for whole, n in zip(large, size, strict=True)]
    return jnp.pad(maps, [(0, 0), *beyond], mode="edge")


def _starts(length: int, side: int) -> list[int]:
    """Returns where patches start, so that the last one ends at the border."""
    return sorted({*range(0, length - side, max(1, side // 2)), length - side})
