"""Synthetic images that resemble chest X-rays, for trials without any download.

A program draws them; they have no medical value. The three classes differ in the texture and the
opacity of the lungs, at random places. A convolution can learn this difference, but a linear model
of the pixels cannot. Brightness, contrast and anatomy vary in the same way in all classes.
"""

import numpy as np
from scipy import ndimage

from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.sources.source import Source

CLASS_NAMES = ("clear", "reticular", "consolidation")
IMAGE_SIZE = 96  # pixels, both sides

_CHUNK = 100  # images drawn at once, to keep the working set to a few megabytes


def draw_phantoms(config: DataConfig) -> LabelledImages:
    """Draws `config.phantom.images` images from the seed `config.split_seed`."""
    images, labels = draw(config.phantom.images, config.split_seed)
    return LabelledImages(
        images,
        labels,
        CLASS_NAMES,
        name="phantom",
        description="synthetic chest X-ray phantoms drawn by a program, of no medical value",
        synthetic=True,
    )


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws images; the classes take turns.

    Args:
        count: number of images.
        seed: the same seed draws the same images.

    Returns:
        uint8 images (count, 96, 96) and int32 labels (count,), indices into `CLASS_NAMES`.
    """
    labels = np.arange(count, dtype=np.int32) % len(CLASS_NAMES)
    rng = np.random.default_rng(seed)
    chunks = np.split(labels, range(_CHUNK, count, _CHUNK))
    return np.concatenate([_draw_chunk(chunk, rng) for chunk in chunks]), labels


def _draw_chunk(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws some images. Intensities before `_expose` are in units of the lung-tissue contrast."""
    n = len(labels)
    tissue, lungs = _anatomy(n, rng)
    finding = np.zeros_like(lungs)
    reticular, consolidation = (labels == CLASS_NAMES.index(name) for name in CLASS_NAMES[1:])
    finding[reticular] = _lines(reticular.sum(), rng)
    finding[consolidation] = _patches(lungs[consolidation], rng)
    # The mean of a finding over the lungs becomes 0: it adds structure there, but no brightness.
    finding -= (finding * lungs).sum((1, 2), keepdims=True) / lungs.sum((1, 2), keepdims=True)
    clouds = 0.08 * _noise(n, 10.0, rng)
    image = tissue + lungs * (finding + clouds - 1) + 0.08 * _noise(n, 20.0, rng)
    image += 0.04 * rng.standard_normal(image.shape, np.float32)
    return _expose(image, rng)


def _anatomy(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns soft tissue with bones, and a soft mask of the lungs in 0..1; both (n, 96, 96)."""
    x, y = _body_coordinates(n, rng)
    lungs = np.zeros_like(x)
    for side in (-1, 1):
        center = side * _uniform(rng, n, 0.41, 0.47)
        radius = np.hypot(
            (x - center) / _uniform(rng, n, 0.30, 0.37),
            (y + _uniform(rng, n, 0.05, 0.15)) / _uniform(rng, n, 0.62, 0.74),
        )
        dome = _uniform(rng, n, 0.32, 0.46) + 0.8 * (x - center) ** 2
        lungs += _inside(radius, 0.05) * _inside(1 + y - dome, 0.04)
    heart = np.hypot(
        (x - _uniform(rng, n, 0.08, 0.16)) / _uniform(rng, n, 0.26, 0.38),
        (y - _uniform(rng, n, 0.18, 0.30)) / _uniform(rng, n, 0.26, 0.36),
    )
    lungs *= 1 - 0.9 * _inside(heart, 0.08)

    tissue = _inside(np.hypot(x / 0.98, (y - 0.25) / 1.3), 0.05)
    slope, pitch = _uniform(rng, n, 0.25, 0.45), _uniform(rng, n, 0.19, 0.23)
    phase = _uniform(rng, n, 0, 1)
    ribs = np.cos(2 * np.pi * ((y - slope * (np.abs(x) - 0.5) ** 2 * 3) / pitch + phase))
    tissue *= 1 + _uniform(rng, n, 0.10, 0.20) * np.clip(ribs, 0, 1) * (np.abs(x) > 0.12)
    tissue += _uniform(rng, n, 0.15, 0.3) * np.exp(-((x / 0.09) ** 2))  # spine
    clavicles = y + _uniform(rng, n, 0.62, 0.72) + 0.25 * np.abs(x)
    tissue += _uniform(rng, n, 0.15, 0.3) * np.exp(-((clavicles / 0.035) ** 2)) * (np.abs(x) < 0.8)
    return tissue, lungs


def _body_coordinates(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y (n, 96, 96) of a shifted, turned and scaled body, about -1..1."""
    line = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    x = line[None, None, :] - _uniform(rng, n, -0.1, 0.1)
    y = line[None, :, None] - _uniform(rng, n, -0.1, 0.1)
    angle = np.radians(_uniform(rng, n, -6, 6))
    cos, sin = np.cos(angle), np.sin(angle)
    return (
        (cos * x + sin * y) * _uniform(rng, n, 0.92, 1.1),
        (cos * y - sin * x) * _uniform(rng, n, 0.92, 1.1),
    )


def _lines(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a net of fine bright lines, about 5 pixels apart: the zero crossings of noise."""
    white = rng.standard_normal((n, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    band = _blur(white, 1.8) - _blur(white, 2.8)
    band /= band.std((1, 2), keepdims=True)
    return _uniform(rng, n, 0.4, 0.6) * np.exp(-((band / 0.5) ** 2))


def _patches(lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws two clusters of soft opacities, each around a random point inside the lungs."""
    n = len(lungs)
    line = np.arange(IMAGE_SIZE, dtype=np.float32)
    interior = (_blur(lungs, 3.0) > 0.75).reshape(n, -1)
    opacity = np.zeros_like(lungs)
    for _ in range(2):
        center = np.where(interior, rng.random(interior.shape), 0).argmax(1)
        for _ in range(8):
            row = (center // IMAGE_SIZE)[:, None, None] + _normal(rng, n, 6.0)
            column = (center % IMAGE_SIZE)[:, None, None] + _normal(rng, n, 6.0)
            width = _uniform(rng, n, 2.0, 3.0)
            falloff_y = np.exp(-(((line[None, :, None] - row) / width) ** 2) / 2)
            falloff_x = np.exp(-(((line[None, None, :] - column) / width) ** 2) / 2)
            opacity += falloff_y * falloff_x
    return _uniform(rng, n, 0.85, 1.05) * np.tanh(opacity)


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gives each image a random brightness and contrast that do not depend on its class."""
    n = len(image)
    image = image - image.mean((1, 2), keepdims=True)
    image /= image.std((1, 2), keepdims=True)
    image = _uniform(rng, n, 95, 145) + _uniform(rng, n, 35, 50) * image
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _inside(radius: np.ndarray, softness: float) -> np.ndarray:
    """Falls from 1 to 0 where the radius passes 1, over about `softness` on either side."""
    return (0.5 + 0.5 * np.tanh((1 - radius) / softness)).astype(np.float32)


def _noise(n: int, width: float, rng: np.random.Generator) -> np.ndarray:
    """Returns smooth noise (n, 96, 96) of unit variance; `width` is in pixels."""
    # Gaussian bumps with random weights on a coarse grid are much faster than a wide blur.
    spacing = 4
    pixels = np.arange(IMAGE_SIZE, dtype=np.float32)[:, None]
    bumps = np.exp(-(((pixels - pixels[::spacing].T) / width) ** 2) / 2)
    weights = rng.standard_normal((n, bumps.shape[1], bumps.shape[1]), np.float32)
    field = bumps @ weights @ bumps.T
    return field / field.std((1, 2), keepdims=True)


def _blur(images: np.ndarray, width: float) -> np.ndarray:
    return ndimage.gaussian_filter(images, (0, width, width), mode="wrap")


def _uniform(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    """Returns one value per image, float32 (n, 1, 1)."""
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def _normal(rng: np.random.Generator, n: int, scale: float) -> np.ndarray:
    return (scale * rng.standard_normal((n, 1, 1))).astype(np.float32)


PHANTOM = Source(
    points_at="the name phantom (synthetic drawings)",
    recognises=lambda config: config.name == "phantom",
    find=draw_phantoms,
)
