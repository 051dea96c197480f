import io
import json
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import DataConfig, Preprocessing


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
        config = DataConfig(image_size=(64, 96), resize="lanczos", mean=(0.1, 0.2, 0.3))
        built = Preprocessing.from_config(config, channels=3)
        assert built == Preprocessing((64, 96), 3, "lanczos", (0.1, 0.2, 0.3), (0.5,))
        assert Preprocessing.from_dict(json.loads(json.dumps(built.to_dict()))) == built

    def test_one_number_is_a_square(self):
        assert Preprocessing.from_config(DataConfig(image_size=48), 1).image_size == (48, 48)

    @pytest.mark.parametrize("channels", [0, 2, 4])
    def test_other_channels_are_refused(self, channels):
        with pytest.raises(ValueError, match=f"1 .grey. or 3 .RGB. channels; got {channels}"):
            preprocessing(channels)

    @pytest.mark.parametrize("field", ["mean", "std"])
    def test_mean_and_std_must_fit_the_channels(self, field):
        config = DataConfig(**{field: (0.5, 0.5, 0.5)})
        with pytest.raises(ValueError, match=f"data.{field} must have one value"):
            Preprocessing.from_config(config, channels=1)

    def test_saved_settings_with_other_keys_are_refused(self):
        values = preprocessing().to_dict()
        del values["std"]
        with pytest.raises(ValueError, match="must have the keys"):
            Preprocessing.from_dict(values)


class TestDecode:
    def test_grey_to_rgb_repeats_the_channel(self):
        pixels = noise(5, 7)
        decoded = np.asarray(preprocessing(3).decode(saved(Image.fromarray(pixels))))
        np.testing.assert_array_equal(decoded, np.repeat(pixels[..., None], 3, axis=2))

    def test_rgb_to_grey_by_luma(self):
        pixels = noise(5, 7, 3)
        decoded = np.asarray(preprocessing(1).decode(saved(Image.fromarray(pixels))), float)
        np.testing.assert_allclose(decoded, pixels @ [0.299, 0.587, 0.114], atol=1)

    @pytest.mark.parametrize("depth", [2, 4])
    def test_alpha_is_dropped_and_not_blended(self, depth):
        pixels = noise(5, 7, depth)
        pixels[..., -1] = 0  # wholly transparent
        mode = {2: "LA", 4: "RGBA"}[depth]
        image = Image.frombytes(mode, (7, 5), pixels.tobytes())
        decoded = np.asarray(preprocessing(3).decode(saved(image)))
        np.testing.assert_array_equal(decoded, np.broadcast_to(pixels[..., :-1], (5, 7, 3)))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_palette_is_looked_up(self, channels):
        palette = noise(256, 3)
        image = Image.fromarray(noise(5, 7))
        image.putpalette(palette.tobytes())
        decoded = np.asarray(preprocessing(channels).decode(saved(image)), float)
        expected = palette[noise(5, 7)]
        if channels == 1:
            expected = expected @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(decoded, expected, atol=1 if channels == 1 else 0)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_cmyk_becomes_colour(self, channels):
        inks = np.zeros((8, 8, 4), np.uint8)
        inks[..., 0] = 255  # cyan: no red
        cmyk = saved(Image.frombytes("CMYK", (8, 8), inks.tobytes()), "JPEG", quality=100)
        decoded = np.asarray(preprocessing(channels).decode(cmyk), float)
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
        decoded = np.asarray(preprocessing(1).decode(jpeg), float)
        np.testing.assert_allclose(decoded, np.rot90(pixels, turns), atol=4)

    @pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
    def test_arrays_are_taken_as_they_are(self, shape):
        pixels = noise(*shape)
        decoded = np.asarray(preprocessing(3).decode(pixels))
        expected = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
        np.testing.assert_array_equal(decoded, np.broadcast_to(expected, (5, 7, 3)))

    @pytest.mark.parametrize(
        "pixels", [noise(5, 7).astype(np.float32), noise(5, 7).astype(np.uint16), noise(5, 7, 2)]
    )
    def test_other_arrays_are_refused(self, pixels):
        with pytest.raises(ValueError, match="must be uint8 with shape"):
            preprocessing().decode(pixels)

    @pytest.mark.parametrize(
        ("dtype", "format"), [(np.uint16, "PNG"), (np.int32, "TIFF"), (np.float32, "TIFF")]
    )
    def test_more_than_eight_bits_are_refused(self, dtype, format):
        deep = saved(Image.fromarray(noise(5, 7).astype(dtype)), format)
        with pytest.raises(ValueError, match="8 bits per channel"):
            preprocessing().decode(deep)

    def test_sixteen_bit_colour_png_is_refused(self):
        # Pillow would read it as 8 bits; it cannot write one, so the header is edited.
        png = bytearray(saved(Image.fromarray(noise(4, 4, 3))))
        rows = b"".join(b"\x00" + bytes(4 * 6) for _ in range(4))
        header = b"IHDR" + bytes(png[16:24]) + bytes([16, 2, 0, 0, 0])
        data = b"IDAT" + zlib.compress(rows)
        chunks = [header, data, b"IEND"]
        encoded = bytes(png[:8]) + b"".join(
            (len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks
        )
        assert Image.open(io.BytesIO(encoded)).mode == "RGB"
        with pytest.raises(ValueError, match="16-bit PNG"):
            preprocessing(3).decode(encoded)

    @pytest.mark.parametrize("format", ["PNG", "JPEG"])
    def test_damaged_files_are_refused(self, format):
        whole = saved(Image.fromarray(noise(64, 64)), format)
        with pytest.raises(ValueError, match="not a complete image file"):
            preprocessing().decode(whole[: len(whole) // 2])
        for no_image in (b"", b"<html>404</html>"):
            with pytest.raises(ValueError, match="not an image file"):
                preprocessing().decode(no_image)


class TestResize:
    @pytest.mark.parametrize("resize_filter", ["bilinear", "bicubic", "lanczos", "nearest"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_constant_image_stays_constant(self, resize_filter, channels):
        step = preprocessing(channels, (33, 70), resize_filter)
        resized = step.resize(step.decode(np.full((101, 47), 137, np.uint8)))
        assert resized.dtype == np.uint8
        np.testing.assert_array_equal(resized, np.full((33, 70, channels), 137))

    def test_a_ramp_is_sampled_at_pixel_centers(self):
        ramp = np.broadcast_to(np.arange(128, dtype=np.uint8) * 2, (128, 128))
        resized = preprocessing(1, (32, 32)).resize(Image.fromarray(ramp))[..., 0].astype(float)
        centers = (np.arange(32) + 0.5) * 4 - 0.5
        inner = slice(1, -1)  # at the borders the filter is cut off
        expected = np.broadcast_to(2 * centers, (32, 32))
        np.testing.assert_allclose(resized[:, inner], expected[:, inner], atol=0.5 + 1e-6)

    @pytest.mark.parametrize("resize_filter", ["bilinear", "bicubic", "lanczos"])
    def test_shrinking_averages_a_checkerboard(self, resize_filter):
        board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
        resized = preprocessing(1, (32, 32), resize_filter).resize(Image.fromarray(board))
        np.testing.assert_allclose(resized[2:-2, 2:-2], 127.5, atol=1)

    def test_the_aspect_ratio_is_not_kept(self):
        halves = np.repeat(np.uint8([0, 200]), [40, 40])[:, None].repeat(20, axis=1)
        resized = preprocessing(1, (32, 64), "nearest").resize(Image.fromarray(halves))[..., 0]
        expected = np.repeat(np.uint8([0, 200]), 16)[:, None]
        np.testing.assert_array_equal(resized, expected * np.ones(64, np.uint8))


class TestNormalize:
    @pytest.mark.parametrize(
        ("channels", "mean", "std"),
        [(1, (0.5,), (0.25,)), (3, (0.5,), (0.5,)), (3, (0.485, 0.456, 0.406), (0.2, 0.3, 0.4))],
    )
    def test_against_numpy_in_double_precision(self, channels, mean, std):
        images = noise(2, 32, 32, channels)
        step = Preprocessing((32, 32), channels, "bilinear", mean, std)
        normalized = jax.jit(step.normalize)(images)
        assert normalized.dtype == np.float32
        expected = (images / 255.0 - np.array(mean)) / np.array(std)
        np.testing.assert_allclose(normalized, expected, rtol=1e-5, atol=1e-6)
