import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import DataConfig, Preprocessing
from medmamba_jax.data.images.preprocessing import RESIZE_FILTERS
from medmamba_jax.errors import UserError


def preprocessing(channels=1, size=(32, 32), resize_filter="bilinear"):
    return Preprocessing(size, channels, resize_filter, mean=(0.5,), std=(0.5,))


def saved(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class TestSettings:
    def test_from_config_and_back_through_json(self):
        config = DataConfig(
            image_size=(64, 96), resize="lanczos", mean=(0.1, 0.2, 0.3), window="0,9", frame=2
        )
        built = config.preprocessing(channels=3)
        assert built == Preprocessing((64, 96), 3, "lanczos", (0.1, 0.2, 0.3), (0.5,), (0, 9), 2)
        assert Preprocessing.from_dict(json.loads(json.dumps(built.to_dict()))) == built

    def test_one_number_is_a_square(self):
        assert DataConfig(image_size=48).preprocessing(1).image_size == (48, 48)

    def test_no_channels_are_refused(self):
        with pytest.raises(UserError, match="1 or more channels; got 0"):
            preprocessing(0)

    @pytest.mark.parametrize("field", ["mean", "std"])
    def test_mean_and_std_must_fit_the_channels(self, field):
        config = DataConfig(**{field: (0.5, 0.5, 0.5)})
        with pytest.raises(UserError, match=f"data.{field} must have one value"):
            config.preprocessing(channels=1)

    @pytest.mark.parametrize("field", ["image_size", "channels", "resize_filter", "mean", "std"])
    def test_saved_settings_must_hold_what_has_no_default(self, field):
        values = preprocessing().to_dict()
        del values[field]
        with pytest.raises(UserError, match=rf"must have the keys .* it lacks \['{field}'\]"):
            Preprocessing.from_dict(values)

    def test_settings_of_an_earlier_version_get_the_defaults(self):
        values = preprocessing().to_dict()
        del values["window"], values["frame"]
        assert Preprocessing.from_dict(values) == preprocessing()

    def test_unknown_keys_are_refused_or_collected(self):
        values = preprocessing().to_dict() | {"sharpness": 1}
        with pytest.raises(UserError, match="preprocessing has no key 'sharpness'"):
            Preprocessing.from_dict(values)
        ignored = []
        assert Preprocessing.from_dict(values, ignored=ignored) == preprocessing()
        assert ignored == ["preprocessing.sharpness"]

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"resize_filter": "box"}, "resize_filter must be one of .*'lanczos'.*got 'box'"),
            ({"window": "9,0"}, "a window must be"),
        ],
    )
    def test_values_that_are_not_allowed(self, change, problem):
        with pytest.raises(UserError, match=problem):
            dataclasses.replace(preprocessing(), **change)


class TestDecode:
    def test_grey_to_rgb_repeats_the_channel(self):
        pixels = noise(5, 7)
        decoded = preprocessing(3).decode(saved(Image.fromarray(pixels)))
        np.testing.assert_array_equal(decoded, np.repeat(pixels[..., None], 3, axis=2))

    def test_rgb_to_grey_by_luma(self):
        pixels = noise(5, 7, 3)
        decoded = preprocessing(1).decode(saved(Image.fromarray(pixels)))[..., 0].astype(float)
        np.testing.assert_allclose(decoded, pixels @ [0.299, 0.587, 0.114], atol=1)

    @pytest.mark.parametrize("depth", [2, 4])
    def test_alpha_is_dropped_and_not_blended(self, depth):
        pixels = noise(5, 7, depth)
        pixels[..., -1] = 0  # wholly transparent
        mode = {2: "LA", 4: "RGBA"}[depth]
        image = Image.frombytes(mode, (7, 5), pixels.tobytes())
        decoded = preprocessing(3).decode(saved(image))
        np.testing.assert_array_equal(decoded, np.broadcast_to(pixels[..., :-1], (5, 7, 3)))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_palette_is_looked_up(self, channels):
        palette = noise(256, 3)
        image = Image.fromarray(noise(5, 7))
        image.putpalette(palette.tobytes())
        decoded = preprocessing(channels).decode(saved(image)).astype(float)
        expected = palette[noise(5, 7)]
        if channels == 1:
            expected = (expected @ [0.299, 0.587, 0.114])[..., None]
        np.testing.assert_allclose(decoded, expected, atol=1 if channels == 1 else 0)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_cmyk_becomes_colour(self, channels):
        inks = np.zeros((8, 8, 4), np.uint8)
        inks[..., 0] = 255  # cyan: no red
        cmyk = saved(Image.frombytes("CMYK", (8, 8), inks.tobytes()), "JPEG", quality=100)
        decoded = preprocessing(channels).decode(cmyk).astype(float)
        expected = [0, 255, 255] if channels == 3 else 255 * (0.587 + 0.114)
        np.testing.assert_allclose(decoded, np.broadcast_to(expected, decoded.shape), atol=3)

    @pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
    def test_exif_orientation_turns_a_jpeg_upright(self, orientation, turns):
        # Smooth content survives JPEG; its two diagonals and both axes differ.
        y, x = np.mgrid[:16, :24]
        pixels = (2 * y + 8 * x).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        jpeg = saved(Image.fromarray(pixels), "JPEG", quality=100, exif=exif)
        decoded = preprocessing(1).decode(jpeg)[..., 0].astype(float)
        np.testing.assert_allclose(decoded, np.rot90(pixels, turns), atol=4)

    @pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
    def test_arrays_are_taken_as_they_are(self, shape):
        pixels = noise(*shape)
        decoded = preprocessing(3).decode(pixels)
        expected = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
        np.testing.assert_array_equal(decoded, np.broadcast_to(expected, (5, 7, 3)))

    def test_an_array_that_is_ready_is_not_copied(self):
        pixels = noise(5, 7, 6)
        assert preprocessing(6).decode(pixels) is pixels

    @pytest.mark.parametrize("channels", [2, 4, 5])
    def test_any_number_of_channels_that_the_image_brings(self, channels):
        pixels = noise(5, 7, channels)
        np.testing.assert_array_equal(preprocessing(channels).decode(pixels), pixels)
        file = io.BytesIO()
        np.save(file, pixels)
        np.testing.assert_array_equal(preprocessing(channels).decode(file.getvalue()), pixels)

    def test_channels_that_png_can_hold(self):
        for mode, channels in (("LA", 2), ("RGBA", 4)):
            pixels = noise(5, 7, channels)
            png = saved(Image.frombytes(mode, (7, 5), pixels.tobytes()))
            np.testing.assert_array_equal(preprocessing(channels).decode(png), pixels)

    @pytest.mark.parametrize(
        ("image", "channels", "has"),
        [
            (noise(5, 7, 5), 3, 5),
            (noise(5, 7, 2), 1, 2),
            (noise(3, 5, 7), 3, 7),
            (noise(5, 7, 3), 5, 3),
            (noise(5, 7), 2, 1),
            (saved(Image.fromarray(noise(5, 7, 3))), 4, 3),
            (saved(Image.fromarray(noise(5, 7))), 4, 1),
        ],
    )
    def test_other_channels_than_the_image_brings_are_refused(self, image, channels, has):
        with pytest.raises(UserError, match=f"has {has} channels, the model reads {channels} "):
            preprocessing(channels).decode(image)

    def test_the_window_and_the_frame_are_the_settings(self):
        pixels = np.array([[0, 100, 200, 300]], np.uint16)
        step = Preprocessing((32, 32), 1, "bilinear", (0.5,), (0.5,), window=(100, 200))
        np.testing.assert_array_equal(step.decode(pixels)[..., 0], [[0, 0, 255, 255]])
        pages = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 20, 30)]
        tiff = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
        step = Preprocessing((32, 32), 1, "bilinear", (0.5,), (0.5,), frame=2)
        assert (step.decode(tiff) == 30).all()
        every = Preprocessing((32, 32), 1, "bilinear", (0.5,), (0.5,), frame=-1)
        with pytest.raises(UserError, match="holds 3 frames"):
            every.decode(tiff)
        assert (every.decode(saved(pages[1])) == 20).all()

    @pytest.mark.parametrize("as_given", [str, Path])
    def test_a_path_gives_what_its_bytes_give(self, tmp_path, as_given):
        pixels = noise(5, 7, 3)
        (tmp_path / "one.png").write_bytes(saved(Image.fromarray(pixels)))
        np.save(tmp_path / "two.npy", pixels)
        for name in ("one.png", "two.npy"):
            np.testing.assert_array_equal(
                preprocessing(3).decode(as_given(tmp_path / name)), pixels
            )

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path):
        step, damaged = preprocessing(), tmp_path / "damaged.png"
        damaged.write_bytes(saved(Image.fromarray(noise(64, 64)))[:500])
        for path, problem in (
            (tmp_path / "no such.png", "No such file"),
            (tmp_path, "Is a directory"),
            (damaged, "not a complete image file"),
        ):
            with pytest.raises(UserError, match=problem) as raised:
                step.decode(path)
            assert str(path) in str(raised.value)

    @pytest.mark.parametrize("format", ["PNG", "JPEG"])
    def test_damaged_files_are_refused(self, format):
        whole = saved(Image.fromarray(noise(64, 64)), format)
        with pytest.raises(ValueError, match="not a complete image file"):
            preprocessing().decode(whole[: len(whole) // 2])
        for no_image in (b"", b"<html>404</html>"):
            with pytest.raises(ValueError, match="not an image file"):
                preprocessing().decode(no_image)


class TestResize:
    @pytest.mark.parametrize("resize_filter", RESIZE_FILTERS)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_constant_image_stays_constant(self, resize_filter, channels):
        step = preprocessing(channels, (33, 70), resize_filter)
        resized = step.resize(step.decode(np.full((101, 47), 137, np.uint8)))
        assert resized.dtype == np.uint8
        np.testing.assert_array_equal(resized, np.full((33, 70, channels), 137))

    def test_a_ramp_is_sampled_at_pixel_centers(self):
        ramp = np.broadcast_to(np.arange(128, dtype=np.uint8) * 2, (128, 128))
        resized = preprocessing(1, (32, 32)).resize(ramp[..., None])[..., 0].astype(float)
        centers = (np.arange(32) + 0.5) * 4 - 0.5
        inner = slice(1, -1)  # at the borders the filter is cut off
        expected = np.broadcast_to(2 * centers, (32, 32))
        np.testing.assert_allclose(resized[:, inner], expected[:, inner], atol=0.5 + 1e-6)

    @pytest.mark.parametrize("resize_filter", ["bilinear", "bicubic", "lanczos"])
    def test_shrinking_averages_a_checkerboard(self, resize_filter):
        board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
        resized = preprocessing(1, (32, 32), resize_filter).resize(board[..., None])
        np.testing.assert_allclose(resized[2:-2, 2:-2], 127.5, atol=1)

    def test_the_aspect_ratio_is_not_kept(self):
        halves = np.repeat(np.uint8([0, 200]), [40, 40])[:, None].repeat(20, axis=1)
        resized = preprocessing(1, (32, 64), "nearest").resize(halves[..., None])[..., 0]
        expected = np.repeat(np.uint8([0, 200]), 16)[:, None]
        np.testing.assert_array_equal(resized, expected * np.ones(64, np.uint8))

    @pytest.mark.parametrize("channels", [2, 3, 4, 6])
    def test_each_channel_is_resized_like_a_grey_image(self, channels):
        pixels = noise(50, 40, channels)
        resized = preprocessing(channels).resize(pixels)
        for channel in range(channels):
            alone = preprocessing(1).resize(pixels[..., channel : channel + 1])
            np.testing.assert_array_equal(resized[..., channel], alone[..., 0])

    def test_a_transform_comes_before_resizing(self):
        pixels = noise(50, 40, 3)
        cropped = preprocessing(3).resize(pixels, lambda image: image.crop((5, 10, 25, 40)))
        np.testing.assert_array_equal(cropped, preprocessing(3).resize(pixels[10:40, 5:25]))


class TestFit:
    WIDE = np.repeat(np.uint8([10, 20, 30, 40]), 2)[None, :].repeat(4, axis=0)  # 4 x 8

    @staticmethod
    def fitted(pixels, fit, size):
        step = dataclasses.replace(preprocessing(1, size, "nearest"), fit=fit)
        return step.resize(pixels[..., None])[..., 0]

    def test_pad_keeps_all_of_it_on_black(self):
        fitted = self.fitted(self.WIDE, "pad", (8, 8))
        np.testing.assert_array_equal(fitted, np.pad(self.WIDE, ((2, 2), (0, 0))))
        np.testing.assert_array_equal(self.fitted(self.WIDE.T, "pad", (8, 8)), fitted.T)
        half = self.fitted(self.WIDE, "pad", (4, 4))
        np.testing.assert_array_equal(half, np.pad(self.WIDE[::2, ::2], ((1, 1), (0, 0))))

    def test_crop_keeps_the_centre(self):
        np.testing.assert_array_equal(self.fitted(self.WIDE, "crop", (4, 4)), self.WIDE[:, 2:6])
        doubled = self.WIDE[:, 2:6].repeat(2, axis=0).repeat(2, axis=1)
        np.testing.assert_array_equal(self.fitted(self.WIDE, "crop", (8, 8)), doubled)

    def test_all_agree_where_the_aspect_ratio_is_right(self):
        fitted = [self.fitted(self.WIDE, fit, (8, 16)) for fit in ("stretch", "pad", "crop")]
        np.testing.assert_array_equal(fitted[1:], [fitted[0]] * 2)

    @pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
    @pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (7, 13)])
    def test_any_size(self, fit, shape):
        assert self.fitted(np.full(shape, 9, np.uint8), fit, (8, 5)).shape == (8, 5)

    def test_the_transform_comes_first(self):
        step = dataclasses.replace(preprocessing(1, (4, 4), "nearest"), fit="crop")
        cut = step.resize(self.WIDE[..., None], lambda plane: plane.crop((0, 0, 6, 4)))
        np.testing.assert_array_equal(cut[..., 0], self.WIDE[:, 1:5])

    def test_other_names_are_refused_and_earlier_runs_stretch(self):
        with pytest.raises(UserError, match=r"fit must be one of .*'crop'.*got 'fill'"):
            dataclasses.replace(preprocessing(), fit="fill")
        values = preprocessing().to_dict()
        del values["fit"]
        assert Preprocessing.from_dict(values).fit == "stretch"
