"""Augmentation inside the jitted training step: whole batches, on the accelerator.

A policy is a function (key, images) -> `Augmented`. It draws random numbers for each image
(`Draws`), and changes the image with them. Some policies also draw how a batch is mixed (`Mixing`),
and mix it. The images have been resized already, so crops are cut from the resized image. Each
image is resampled once, by one affine map.

The same key and images give the same bits on any number of devices. The reason is that pixels are
computed in integers (fixed point), whose sums do not depend on the order of additions.

`DEVICE_POLICIES` has a row for each policy that this package has in
`data.images.augmentation.POLICIES`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from medmamba_jax.data.images.augmentation import (
    BRIGHTNESS,
    CROP_AREA,
    CROP_ASPECT,
    CROP_TRIES,
    ROTATION_DEGREES,
    ZOOM,
    largest_crop_box,
)


class Augmented(NamedTuple):
    """What a policy returns.

    Attributes:
        images: uint8 (b, h, w, c).
        own_share: None if the policy never mixes images. Otherwise a float32 scalar: the share of
            the image itself in each result. The rest comes from the image's partner, see
            `partners`.
    """

    images: jax.Array
    own_share: jax.Array | None


Augment = Callable[[jax.Array, jax.Array], Augmented]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers for the images of a batch, each with a leading axis b.

    A box is int32 (b, 4): top, left, height and width in pixels. A field that is None does nothing.

    Attributes:
        crop: the box that fills the result.
        angle: float32 (b,), the rotation in radians.
        zoom: float32 (b,), the factor by which the content becomes larger.
        mirrored: bool (b,), whether left and right are exchanged at the end.
        brightness: float32 (b,), a factor of all values.
        contrast: float32 (b,), a factor of the distances from the image's mean.
        erased: the box that becomes uniform. Its height is 0 where nothing is erased.
    """

    crop: jax.Array | None = None
    angle: jax.Array | None = None
    zoom: jax.Array | None = None
    mirrored: jax.Array | None = None
    brightness: jax.Array | None = None
    contrast: jax.Array | None = None
    erased: jax.Array | None = None


class Mixing(NamedTuple):
    """How all images of a batch are mixed with their partners.

    Attributes:
        box: int32 (4,), top, left, height and width of what the partner replaces.
        outside: float32 scalar, the image's own share of each pixel outside the box.
    """

    box: jax.Array
    outside: jax.Array


def partners(rows: jax.Array) -> jax.Array:
    """Returns what belongs to each image's partner, the image before it in the batch.

    The shift is always one row. So if a batch is spread over devices, each sends only one row.
    """
    return jnp.roll(rows, 1, axis=0)


# The next functions draw: (uniform numbers (b, _NUMBERS), height, width) -> `Draws`. One call makes
# the numbers of the whole batch, because XLA needs a second to compile each call.

_NUMBERS = 32
_CROP = slice(0, 22)
_ANGLE, _ZOOM, _BRIGHTNESS, _CONTRAST = range(22, 26)
_ERASED = slice(26, 31)
_FLIP = 31

_STRONG_AREA = (0.5, 1.0)
_STRONG_DEGREES = 15.0
_STRONG_BRIGHTNESS = (0.8, 1.2)
_STRONG_CONTRAST = (0.8, 1.2)
_ERASING = 0.25  # share of images
_ERASED_AREA = (0.02, 0.2)
_ERASED_ASPECT = (0.3, 1 / 0.3)

_MIXED = 0.5  # share of batches; half of these by mixup, half by CutMix
_MIXUP_ALPHA = 0.2
_STEPS = 1024  # between the quantiles of a table

Draw = Callable[[jax.Array, int, int], Draws]


def draw_official(numbers: jax.Array, height: int, width: int) -> Draws:
    """Draws as the policy `official` does, for images that are resized already."""
    return Draws(
        crop=_crop_boxes(numbers[:, _CROP], height, width, CROP_AREA),
        mirrored=numbers[:, _FLIP] < 0.5,
    )


def draw_light(numbers: jax.Array, height: int, width: int) -> Draws:
    """Draws as the policy `light` does."""
    del height, width
    return Draws(
        angle=_angles(ROTATION_DEGREES, numbers[:, _ANGLE]),
        zoom=_between(ZOOM, numbers[:, _ZOOM]),
        brightness=_between(BRIGHTNESS, numbers[:, _BRIGHTNESS]),
    )


def draw_light_flip(numbers: jax.Array, height: int, width: int) -> Draws:
    """Draws as the policy `light_flip` does."""
    drawn = draw_light(numbers, height, width)
    return dataclasses.replace(drawn, mirrored=numbers[:, _FLIP] < 0.5)


def draw_strong(numbers: jax.Array, height: int, width: int) -> Draws:
    """Draws what the policy `strong` does to single images.

    - A crop of 50 % to 100 % of the area, with an aspect ratio of 3/4 to 4/3.
    - A rotation within 15 degrees. Brightness and contrast by 0.8 to 1.2.
    - In a quarter of the images, a box of 2 % to 20 % of the area, with an aspect ratio of 0.3 to
      3.3, gets the image's mean (random erasing, Zhong et al., arXiv 1708.04896).
    """
    return Draws(
        crop=_crop_boxes(numbers[:, _CROP], height, width, _STRONG_AREA),
        angle=_angles(_STRONG_DEGREES, numbers[:, _ANGLE]),
        brightness=_between(_STRONG_BRIGHTNESS, numbers[:, _BRIGHTNESS]),
        contrast=_between(_STRONG_CONTRAST, numbers[:, _CONTRAST]),
        erased=_erased_boxes(numbers[:, _ERASED], height, width),
    )


def draw_strong_flip(numbers: jax.Array, height: int, width: int) -> Draws:
    """Draws as `draw_strong`, and a mirror image half of the time."""
    drawn = draw_strong(numbers, height, width)
    return dataclasses.replace(drawn, mirrored=numbers[:, _FLIP] < 0.5)


def draw_mixing(key: jax.Array, height: int, width: int) -> Mixing:
    """Draws how a batch is mixed: half of the batches not at all, a quarter each by two methods.

    One draw holds for the whole batch, as in timm (mode "batch") and torchvision. In timm's terms:
    `mixup=0.2, cutmix=1.0, mixup_prob=0.5, mixup_switch_prob=0.5`.

    - mixup (Zhang et al., arXiv 1710.09412): the shares are s and 1 - s with s of Beta(0.2, 0.2).
      The image's own share is the larger one. The order of a batch is random, so the
      mixtures have the same distribution without this choice. With it, the logged label is that of
      the image that dominates.
    - CutMix (Yun et al., arXiv 1905.04899): a box comes from the partner. Its area is uniform, and
      its centre lies anywhere in the image. Then the box is cut at the borders of the image.
    """
    method, share, area, y, x = jax.random.uniform(key, (5,))
    is_mixup, is_cutmix = method < _MIXED / 2, (_MIXED / 2 <= method) & (method < _MIXED)
    # The quantile at a uniform number has the wanted distribution. A table of quantiles with linear
    # interpolation needs no loop.
    points = np.linspace(0, 1, _STEPS + 1)
    quantiles = jnp.asarray(scipy.special.betaincinv(_MIXUP_ALPHA, _MIXUP_ALPHA, points))
    place = (share * _STEPS).astype("int32")
    low, high = quantiles[place], quantiles[place + 1]
    beta = low + (share * _STEPS - place) * (high - low)
    beta = jnp.maximum(beta, 1 - beta)
    edges = []
    for size, centre in ((height, y), (width, x)):
        half = jnp.floor(jnp.sqrt(area) * size / 2).astype("int32")
        middle = jnp.floor(centre * size).astype("int32")
        edges.append((jnp.maximum(middle - half, 0), jnp.minimum(middle + half, size)))
    (top, bottom), (left, right) = edges
    cut = jnp.stack([top, left, bottom - top, right - left])
    return Mixing(jnp.where(is_cutmix, cut, 0), jnp.where(is_mixup, beta, 1.0))


def _between(limits: tuple[float, float], uniform: jax.Array) -> jax.Array:
    """Maps numbers in [0, 1) to an interval."""
    low, high = limits
    return low + (high - low) * uniform


def _angles(most: float, uniform: jax.Array) -> jax.Array:
    return jnp.radians(_between((-most, most), uniform))


def _crop_boxes(
    uniform: jax.Array, height: int, width: int, areas: tuple[float, float]
) -> jax.Array:
    """Draws crops as `random_crop_box` does, but all tries at once. The first fit counts."""
    batch = len(uniform)
    tries = uniform[:, : 2 * CROP_TRIES].reshape(batch, 2, CROP_TRIES)
    sizes = _sizes(_between(areas, tries[:, 0]) * (height * width), CROP_ASPECT, tries[:, 1])
    fits = (sizes > 0).all(-1) & (sizes <= jnp.array([height, width])).all(-1)
    first = jnp.argmax(fits, axis=1)[:, None, None]
    boxes = _placed(jnp.take_along_axis(sizes, first, axis=1)[:, 0], uniform[:, -2:], height, width)
    left, top, crop_width, crop_height = largest_crop_box(width, height)
    fallback = jnp.array([top, left, crop_height, crop_width])
    return jnp.where(fits.any(1)[:, None], boxes, fallback)


def _erased_boxes(uniform: jax.Array, height: int, width: int) -> jax.Array:
    """Draws the boxes to erase. They lie inside the image."""
    area = _between(_ERASED_AREA, uniform[:, 1]) * (height * width)
    sizes = _sizes(area, _ERASED_ASPECT, uniform[:, 2])
    sizes = jnp.minimum(sizes, jnp.array([height, width]))
    boxes = _placed(sizes, uniform[:, 3:], height, width)
    return jnp.where(uniform[:, :1] < _ERASING, boxes, 0)


def _sizes(area: jax.Array, aspects: tuple[float, float], uniform: jax.Array) -> jax.Array:
    """Returns height and width, int32 (..., 2), of boxes of an area, in pixels.

    The logarithm of the aspect ratio, width by height, is uniform.
    """
    aspect = jnp.exp(_between((math.log(aspects[0]), math.log(aspects[1])), uniform))
    sizes = jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)], axis=-1)
    return jnp.round(sizes).astype("int32")


def _placed(sizes: jax.Array, uniform: jax.Array, height: int, width: int) -> jax.Array:
    """Returns boxes of these sizes (b, 2) anywhere in the image."""
    room = jnp.array([height, width]) - sizes
    return jnp.concatenate([jnp.floor(uniform * (room + 1)).astype("int32"), sizes], axis=1)


# The next functions change pixels.

_POSITION = 16  # bits after the point of a position in the image, in pixels
_WEIGHT = 11  # of the weight of a pixel; three factors then fit into 30 bits: 11 + 11 + 8
_VALUE = 8  # of a value of 0 to 255 before its brightness changes
_GAIN = 12  # of the factor that changes it


def apply(draws: Draws, images: jax.Array) -> jax.Array:
    """Changes each image as its random numbers say: crop, rotation, values, erasing.

    Interpolation is bilinear. With a rotation or a zoom, pixels from outside the image are black.
    With a crop alone, the result shows nothing from outside the crop, as if it were cut out first.

    Args:
        draws: the random numbers.
        images: uint8 (b, h, w, c); h and w at most 8192.

    Returns:
        uint8 (b, h, w, c). Values are rounded to 8 bits once, at the end.
    """
    _, height, width, _ = images.shape
    values = _resampled(draws, images)
    one = jnp.float32(1)
    brightness = one if draws.brightness is None else draws.brightness
    mean = None
    if draws.contrast is not None or draws.erased is not None:
        mean = _means(images)
    if draws.brightness is None and draws.contrast is None:
        result = _shifted(values, 2 * _WEIGHT)
    else:
        contrast = one if draws.contrast is None else draws.contrast
        gain = _fixed(brightness * contrast, _GAIN)
        values = _shifted(values, 2 * _WEIGHT - _VALUE) * _over_pixels(gain)
        if mean is not None:
            offset = _fixed(brightness * (1 - contrast) * mean, _VALUE + _GAIN)
            values += _over_pixels(offset)
        result = jnp.clip(_shifted(values, _VALUE + _GAIN), 0, 255)
    if draws.erased is not None and mean is not None:
        filling = jnp.clip(_fixed(brightness * mean, 0), 0, 255)
        erased = jax.vmap(lambda box: _inside(box, height, width))(draws.erased)
        result = jnp.where(erased[..., None], _over_pixels(filling), result)
    return result.astype("uint8")


def mix(mixing: Mixing, images: jax.Array) -> Augmented:
    """Mixes each image with its partner: own share * image + (1 - own share) * partner.

    The own share is 0 inside the box. The share of the whole image, which weighs the labels, is the
    mean over all pixels.

    Args:
        mixing: the same for all images.
        images: uint8 (b, h, w, c).
    """
    _, height, width, _ = images.shape
    own = jnp.where(
        _inside(mixing.box, height, width)[..., None], 0, _fixed(mixing.outside, _WEIGHT)
    )
    other = partners(images).astype("int32")
    mixed = _shifted(own * images.astype("int32") + ((1 << _WEIGHT) - own) * other, _WEIGHT)
    cut = (mixing.box[2] * mixing.box[3]).astype("float32") / (height * width)
    return Augmented(mixed.astype("uint8"), mixing.outside * (1 - cut))


def _mix_if_drawn(mixing: Mixing, images: jax.Array) -> Augmented:
    """Does what `mix` does, and is ten times as fast on a CPU.

    On a CPU, XLA ignores `optimization_barrier`, so `mix` would compute the images several times.
    Before a condition, XLA computes them once. On a GPU the host would wait for the condition.
    """
    is_mixed = (mixing.outside < 1) | (mixing.box[2:] > 0).all()
    return jax.lax.cond(
        is_mixed, mix, lambda mixing, images: Augmented(images, mixing.outside), mixing, images
    )


def _resampled(draws: Draws, images: jax.Array) -> jax.Array:
    """Returns values with 2 * `_WEIGHT` bits after the point, int32 (b, h, w, c)."""
    batch, height, width, channels = images.shape
    centre, matrix = _affine(draws, batch, height, width)
    if draws.angle is None and draws.zoom is None and draws.crop is not None:
        low, size = draws.crop[:, :2], draws.crop[:, 2:]
    else:
        low, size = jnp.zeros((batch, 2), "int32"), jnp.array([[height, width]])
    # These are positions of the centres of pixels. In the result they are counted in half pixels
    # from its centre.
    half_steps = _fixed(matrix, _POSITION - 1)[:, :, :, None, None]
    ys = (2 * jnp.arange(height) + 1 - height)[:, None]
    xs = (2 * jnp.arange(width) + 1 - width)[None, :]
    places = half_steps[:, :, 0] * ys + half_steps[:, :, 1] * xs  # (b, 2, h, w)
    places += _fixed(centre, _POSITION)[:, :, None, None]
    first = (low << _POSITION)[..., None, None]
    end = ((low + size) << _POSITION)[..., None, None]
    is_inside = ((places >= first) & (places < end)).all(1)
    half = 1 << (_POSITION - 1)
    places = jnp.clip(places - half, first, end - 2 * half)
    weights = _shifted(places & (2 * half - 1), _POSITION - _WEIGHT)[..., None]
    top, left = places[:, 0] >> _POSITION, places[:, 1] >> _POSITION
    # At the last row or column the weight of the next one is 0.
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    rows = images.reshape(batch, height * width, channels)

    def between(row: jax.Array) -> jax.Array:
        return _blend(_at(rows, row * width + left), _at(rows, row * width + right), weights[:, 1])

    values = _blend(between(top), between(bottom), weights[:, 0])
    return jnp.where(is_inside[..., None], values, 0)


def _affine(draws: Draws, batch: int, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns where the pixels of the result come from: centre + matrix (y, x).

    Returns:
        The place in the image of the result's centre, float32 (b, 2), and the matrix (b, 2, 2),
        which maps a distance from that centre. The first of two is y, the second x.
    """
    size = jnp.array([height, width], "float32")
    centre, scale = jnp.broadcast_to(size / 2, (batch, 2)), jnp.ones((batch, 2))
    if draws.crop is not None:
        crop = draws.crop.astype("float32")
        centre, scale = crop[:, :2] + crop[:, 2:] / 2, crop[:, 2:] / size
    if draws.zoom is not None:
        scale = scale / draws.zoom[:, None]
    if draws.mirrored is not None:
        scale *= jnp.stack([jnp.ones(batch), jnp.where(draws.mirrored, -1.0, 1.0)], axis=1)
    angle = jnp.zeros(batch) if draws.angle is None else draws.angle
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.stack([jnp.stack([cos, -sin], 1), jnp.stack([sin, cos], 1)], 1)
    return centre, rotation * scale[:, None, :]


def _at(rows: jax.Array, places: jax.Array) -> jax.Array:
    """Takes (b, h, w, c) from (b, h * w, c)."""
    take = jax.vmap(lambda x, i: x.at[i].get(mode="promise_in_bounds"))
    return take(rows, places).astype("int32")


def _blend(first: jax.Array, second: jax.Array, weight: jax.Array) -> jax.Array:
    return ((1 << _WEIGHT) - weight) * first + weight * second


def _means(images: jax.Array) -> jax.Array:
    """Returns the mean of each image, float32 (b,), from sums of integers."""
    _, height, width, channels = images.shape
    rows = images.sum((2, 3), dtype="uint32")  # a sum over the whole image might overflow
    rows = (rows << _VALUE) // (width * channels)
    return rows.sum(1, dtype="uint32").astype("float32") / (height << _VALUE)


def _inside(box: jax.Array, height: int, width: int) -> jax.Array:
    """Returns which pixels lie in a box, bool (h, w)."""
    top, left, box_height, box_width = box
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (y >= top) & (y < top + box_height) & (x >= left) & (x < left + box_width)


def _fixed(x: jax.Array, bits: int) -> jax.Array:
    """Rounds to an int32 with so many bits after the point."""
    return jnp.round(x * (1 << bits)).astype("int32")


def _shifted(x: jax.Array, bits: int) -> jax.Array:
    """Removes bits after the point, rounded."""
    return (x + (1 << (bits - 1))) >> bits


def _over_pixels(x: jax.Array) -> jax.Array:
    return x[:, None, None, None]


# The next part joins drawing and changing to policies.


@dataclasses.dataclass(frozen=True)
class Policy:
    """Augments a batch: draws random numbers, changes each image, and may mix neighbours.

    Attributes:
        draw: draws what happens to each image.
        mixes: whether images are mixed, as `draw_mixing` says.
    """

    draw: Draw
    mixes: bool = False

    def __call__(self, key: jax.Array, images: jax.Array) -> Augmented:
        batch, height, width, _ = images.shape
        of_images, of_batch = jax.random.split(key)
        numbers = jax.random.uniform(of_images, (batch, _NUMBERS))
        changed = apply(self.draw(numbers, height, width), images)
        # With the barrier, XLA computes the images once on a GPU. Without it, XLA would compute
        # them again for each neighbour and gradient.
        changed = jax.lax.optimization_barrier(changed)
        if self.mixes:
            mixing = draw_mixing(of_batch, height, width)
            return jax.lax.platform_dependent(mixing, changed, cpu=_mix_if_drawn, default=mix)
        return Augmented(changed, None)


def unchanged(key: jax.Array, images: jax.Array) -> Augmented:
    """Leaves the images as they are."""
    del key
    return Augmented(images, None)


DEVICE_POLICIES: dict[str, Augment] = {
    "none": unchanged,
    "official": Policy(draw_official),
    "light": Policy(draw_light),
    "light_flip": Policy(draw_light_flip),
    "strong": Policy(draw_strong, mixes=True),
    "strong_flip": Policy(draw_strong_flip, mixes=True),
}
