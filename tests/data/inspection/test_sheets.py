import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data.images.augmentation import ON_DEVICE, POLICIES
from medmamba_jax.data.inspection.sheets import augmentation_sheet

TILE, GAP = 160, 4


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def tile(sheet, row, column):
    left, top = column * (TILE + GAP), row * (TILE + GAP)
    return sheet.crop((left, top, left + TILE, top + TILE))


@pytest.mark.parametrize("policy", [name for name in POLICIES if name not in ON_DEVICE])
def test_a_row_is_the_image_and_six_draws(policy):
    images = [noise(50, 40, 3), noise(30, 60, 1), noise(20, 20, 5)]
    sheet = augmentation_sheet(images, policy, seed=1)
    assert sheet.size == (7 * TILE + 6 * GAP, 3 * TILE + 2 * GAP)
    for row, pixels in enumerate(images):
        shown = pixels if pixels.shape[2] == 3 else pixels[..., 0]
        original = Image.fromarray(shown).resize((TILE, TILE), Image.Resampling.BILINEAR)
        tiles = [tile(sheet, row, column) for column in range(7)]
        assert tiles[0] == original.convert("RGB")
        different = len({t.tobytes() for t in tiles})
        assert different == (1 if policy == "none" else 7)
    assert sheet == augmentation_sheet(images, policy, seed=1)
    assert (sheet == augmentation_sheet(images, policy, seed=2)) == (policy == "none")


def test_the_columns_of_a_policy_of_the_step_are_batches():
    images, draws = [noise(50, 40, 3), noise(30, 60, 1)], []

    def darker(policy, batch, draw):
        assert policy == "strong" and batch.shape == (2, TILE, TILE, 3)
        draws.append(draw)
        return batch // (2 + len(draws))

    sheet = augmentation_sheet(images, "strong", seed=1, in_step=darker)
    assert draws == list(range(6, 12))
    for row in range(2):
        original = np.asarray(tile(sheet, row, 0))
        for column in range(1, 7):
            np.testing.assert_array_equal(tile(sheet, row, column), original // (2 + column))


def test_images_become_squares_as_in_training():
    wide = np.tile(np.arange(0, 240, 3, np.uint8), (40, 1))[..., None]
    tiles = {
        fit: np.asarray(tile(augmentation_sheet([wide], "none", seed=0, fit=fit), 0, 0))[..., 0]
        for fit in ("stretch", "pad", "crop")
    }
    assert not tiles["pad"][:40].any() and not tiles["pad"][120:].any()
    whole = Image.fromarray(wide[..., 0]).resize((TILE, TILE // 2), Image.Resampling.BILINEAR)
    assert (tiles["pad"][40:120] == np.asarray(whole)).all()
    middle = Image.fromarray(wide[:, 20:60, 0]).resize((TILE, TILE), Image.Resampling.BILINEAR)
    assert (tiles["crop"] == np.asarray(middle)).all()


@pytest.mark.parametrize(
    ("images", "policy", "problem"),
    [
        ([], "light", "no images"),
        ([noise(9, 9, 1)], "heavy", "must be one of .*got 'heavy'"),
        ([noise(9, 9, 1)], "strong", "only the training step can apply augmentation 'strong'"),
    ],
)
def test_refusals(images, policy, problem):
    with pytest.raises(ValueError, match=problem):
        augmentation_sheet(images, policy, seed=0)
