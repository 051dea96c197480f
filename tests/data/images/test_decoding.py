"""Every format that images come in, written here and read back."""

import io
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms

from medmamba_jax.data.images.decoding import open_image, parsed
from medmamba_jax.data.images.formats import HEAD, is_image_file, kind_of
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.inspection.image_kinds import image_kind
from medmamba_jax.errors import DataUnavailableError

ORIENTATION = 0x0112
RAMP = np.arange(0, 63000, 15, dtype=np.uint16).reshape(60, 70)  # 4,200 levels


def saved(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def npy(pixels, **options):
    buffer = io.BytesIO()
    np.save(buffer, pixels, **options)
    return buffer.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def by_hand(pixels, low, high):
    """The linear map in exact integer arithmetic, halves rounded to even as NumPy does."""
    result = []
    for value in pixels.ravel().tolist():
        value = min(max(value, low), high)
        whole, rest = divmod(255 * (value - low), high - low)
        half = 2 * rest - (high - low)
        result.append(whole + (half > 0 or (half == 0 and whole % 2 == 1)))
    return np.array(result, np.uint8).reshape(pixels.shape)


def tiff(pixels, *, photometric, bits, sample_format=1):
    """An uncompressed little-endian TIFF, of kinds that Pillow cannot write."""
    height, width, samples = np.atleast_3d(pixels).shape
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    bits_offset = 8 + len(data)
    end = bits_offset + 2 * samples
    short, long = 3, 4
    entries = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, samples, bits if samples == 1 else bits_offset),
        (259, short, 1, 1),
        (262, short, 1, photometric),
        (273, long, 1, 8),
        (277, short, 1, samples),
        (278, long, 1, height),
        (279, long, 1, len(data)),
        (339, short, 1, sample_format),
    ]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return (
        struct.pack("<2sHI", b"II", 42, end) + data + struct.pack("<H", bits) * samples + directory
    )


class TestEightBits:
    @pytest.mark.parametrize(
        ("format", "shape"),
        [
            *((format, (9, 7)) for format in ("PNG", "TIFF", "BMP")),
            *((format, (9, 7, 3)) for format in ("PNG", "TIFF", "BMP", "WEBP")),
        ],
    )
    def test_lossless_formats_return_every_pixel(self, format, shape):
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        opened = open_image(saved(Image.fromarray(noise(*shape)), format, **options))
        np.testing.assert_array_equal(np.asarray(opened), noise(*shape))

    @pytest.mark.parametrize("window", ["auto", "full", (10.0, 20.0)])
    def test_no_window_touches_them(self, window):
        for image in (noise(5, 6), saved(Image.fromarray(noise(5, 6))), npy(noise(5, 6))):
            np.testing.assert_array_equal(open_image(image, window=window), noise(5, 6))

    def test_a_palette_is_looked_up(self):
        palette = noise(256, 3)
        image = Image.fromarray(noise(5, 7))
        image.putpalette(palette.tobytes())
        for format in ("PNG", "GIF", "BMP", "TIFF"):
            opened = open_image(saved(image, format))
            assert opened.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(opened), palette[noise(5, 7)])

    def test_one_bit_becomes_black_and_white(self):
        bits = noise(5, 7) > 127
        np.testing.assert_array_equal(open_image(saved(Image.fromarray(bits))), bits * 255)

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
    @pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
    def test_exif_turns_every_format_upright(self, format, orientation, turns):
        y, x = np.mgrid[:16, :24]
        pixels = np.repeat((2 * y + 8 * x).astype(np.uint8)[..., None], 3, axis=2)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        opened = open_image(saved(Image.fromarray(pixels), format, exif=exif, quality=100))
        np.testing.assert_allclose(
            np.asarray(opened).astype(float), np.rot90(pixels, turns), atol=8
        )

    def test_a_colour_profile_is_left_alone(self):
        # Red and blue change places.
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        swapped = profile.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ")
        profile = swapped.replace(b"tmp!", b"bXYZ")
        png = saved(Image.fromarray(noise(5, 6, 3)), icc_profile=profile)
        np.testing.assert_array_equal(open_image(png), noise(5, 6, 3))


class TestMoreThanEightBits:
    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_a_ramp_keeps_its_levels(self, format):
        opened = np.asarray(open_image(saved(Image.fromarray(RAMP), format)))
        assert opened.dtype == np.uint8
        assert len(np.unique(opened)) > 250
        np.testing.assert_array_equal(opened, by_hand(RAMP, 0, int(RAMP.max())))

    @pytest.mark.parametrize(
        ("window", "bounds"), [("full", (0, 65535)), ((1000.0, 3000.0), (1000, 3000))]
    )
    def test_other_windows(self, window, bounds):
        for image in (saved(Image.fromarray(RAMP)), npy(RAMP), RAMP):
            opened = open_image(image, window=window)
            np.testing.assert_array_equal(opened, by_hand(RAMP, *bounds))

    @pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint32, np.int64, ">u2", np.float32])
    def test_every_type_of_number(self, dtype):
        pixels = np.random.default_rng(0).integers(-100, 101, (6, 7))
        pixels[0, :2] = -100, 100
        if np.dtype(dtype).kind == "u":
            pixels += 100
        low, high = int(pixels.min()), int(pixels.max())
        opened = open_image(npy(pixels.astype(dtype)))
        np.testing.assert_array_equal(opened, by_hand(pixels, low, high))

    def test_32_bit_tiff(self):
        signed = RAMP.astype(np.int32) - 5000
        opened = open_image(saved(Image.fromarray(signed), "TIFF"))
        np.testing.assert_array_equal(opened, by_hand(signed, -5000, int(signed.max())))
        unsigned = RAMP.astype(np.uint32) * 60000  # past 2**31
        opened = open_image(tiff(unsigned, photometric=1, bits=32))
        np.testing.assert_array_equal(opened, by_hand(unsigned, 0, int(unsigned.max())))

    def test_8_bits_with_a_sign(self):
        signed = np.arange(-128, 127, dtype=np.int8).reshape(15, 17)
        image = tiff(signed, photometric=1, bits=8, sample_format=2)
        np.testing.assert_array_equal(open_image(image), by_hand(signed, -128, 126))
        np.testing.assert_array_equal(
            open_image(image, window=(-100, 100)), by_hand(signed, -100, 100)
        )

    def test_white_is_zero(self):
        expected = 255 - by_hand(RAMP, 0, int(RAMP.max()))
        np.testing.assert_array_equal(open_image(tiff(RAMP, photometric=0, bits=16)), expected)
        eight = noise(5, 6)
        np.testing.assert_array_equal(open_image(tiff(eight, photometric=0, bits=8)), 255 - eight)

    def test_exif_turns_them_upright(self):
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        for format in ("PNG", "TIFF"):
            opened = open_image(saved(Image.fromarray(RAMP), format, exif=exif))
            expected = by_hand(np.rot90(RAMP, -1), 0, int(RAMP.max()))
            np.testing.assert_array_equal(opened, expected)

    def test_one_value_only_is_black(self):
        np.testing.assert_array_equal(open_image(np.full((3, 4), 77, np.int16)), np.zeros((3, 4)))

    def test_a_tiff_of_an_unknown_kind_is_called_that(self):
        content = tiff(noise(5, 6, 3), photometric=8, bits=8)
        with pytest.raises(ValueError, match="a TIFF of the kind CIELAB cannot be read: save it"):
            open_image(content)

    def test_64_bit_tiff(self):
        content = tiff(RAMP.astype(np.float64), photometric=1, bits=64, sample_format=3)
        np.testing.assert_array_equal(open_image(content), by_hand(RAMP, 0, int(RAMP.max())))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_no_number_is_refused(self, value):
        pixels = np.zeros((4, 5), np.float32)
        pixels[2, 3] = value
        for image in (pixels, npy(pixels), saved(Image.fromarray(pixels), "TIFF")):
            with pytest.raises(ValueError, match="NaN or infinite"):
                open_image(image)

    def test_floats_have_no_full_range(self):
        with pytest.raises(ValueError, match=r"no full range: set data\.window"):
            open_image(np.zeros((4, 5)), window="full")


class TestArrays:
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize(
        "shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4), (5, 7, 9)]
    )
    def test_shapes(self, shape, order):
        pixels = np.asarray(noise(*shape), order=order)
        for image in (pixels, npy(pixels)):
            np.testing.assert_array_equal(np.asarray(open_image(image)).reshape(shape), pixels)

    @pytest.mark.parametrize("shape", [(5,), (2, 5, 7, 3), (0, 5), (5, 7, 0)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"shape \(h, w\) or \(h, w, channels\)"):
            open_image(npy(np.zeros(shape, np.uint8)))

    @pytest.mark.parametrize(
        "pixels", [np.zeros((4, 5), complex), np.full((4, 5), "a"), np.zeros((4, 5), "M8[s]")]
    )
    def test_what_is_no_real_number_is_refused(self, pixels):
        with pytest.raises(ValueError, match="must be real numbers"):
            open_image(npy(pixels))

    def test_objects_are_never_unpickled(self):
        class Bomb:
            def __reduce__(self):
                return (pytest.fail, ("unpickled",))

        bomb = npy(np.array([[Bomb()]], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match=r"not a complete \.npy file of numbers"):
            open_image(bomb)

    @pytest.mark.parametrize("length", [5, 9, 60, 140])
    def test_a_truncated_file_is_refused(self, length):
        with pytest.raises(ValueError, match="not a"):
            open_image(npy(noise(20, 20))[:length])

    def test_a_header_that_promises_too_much_is_refused(self):
        content = npy(noise(20, 20)).replace(b"(20, 20)", b"(20, 99)")
        with pytest.raises(ValueError, match=r"not a complete \.npy file"):
            open_image(content)


class TestFrames:
    PAGES = tuple(np.full((4, 5), value, np.uint8) for value in (10, 20, 30))

    @pytest.mark.parametrize("format", ["TIFF", "GIF", "WEBP"])
    def test_each_frame_can_be_had(self, format):
        first, *rest = map(Image.fromarray, self.PAGES)
        options = {"lossless": True} if format == "WEBP" else {}
        content = saved(first, format, save_all=True, append_images=rest, **options)
        assert parsed(content).count_frames() == 3
        for frame, page in enumerate(self.PAGES):
            opened = np.atleast_3d(np.asarray(open_image(content, frame=frame)))
            np.testing.assert_array_equal(opened, np.broadcast_to(page[..., None], opened.shape))
        with pytest.raises(ValueError, match=r"frame 3 was asked for .*there are 3"):
            open_image(content, frame=3)

    @pytest.mark.parametrize("image", [saved(Image.fromarray(noise(3, 4))), npy(noise(3, 4))])
    def test_most_files_hold_one(self, image):
        assert parsed(image).count_frames() == 1
        with pytest.raises(ValueError, match="there are 1"):
            open_image(image, frame=1)

    def test_no_image_has_no_frames(self):
        with pytest.raises(ValueError, match="not an image file"):
            parsed(b"<html>404</html>").count_frames()


class TestDamage:
    @pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF"])
    @pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
    def test_half_a_file_is_refused(self, format, part):
        whole = saved(Image.fromarray(noise(64, 64, 3)), format)
        with pytest.raises(ValueError, match=r"not an image file|not a complete|TIFF of a kind"):
            open_image(whole[: int(part * len(whole))])

    def test_the_limit_of_pixels_is_exact(self):
        content = saved(Image.fromarray(noise(60, 70)))
        assert open_image(content, max_pixels=60 * 70).size == (70, 60)
        refused = r"too large \(70 x 60 pixels, and data\.max_pixels allows 4199\): save it smaller"
        with pytest.raises(ValueError, match=refused):
            open_image(content, max_pixels=60 * 70 - 1)

    def test_a_higher_limit_raises_that_of_pillow(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        content = saved(Image.fromarray(noise(64, 64)))
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(content))
        assert open_image(content, max_pixels=5000).size == (64, 64)
        assert open_image(content, max_pixels=4096).size == (64, 64)
        assert Image.MAX_IMAGE_PIXELS == 5000

    def test_a_worker_process_may_crop_what_the_limit_allows(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # the line below raises it
        code = (
            "import pickle, sys; from PIL import Image; Image.MAX_IMAGE_PIXELS = 100;"
            " pickle.loads(sys.stdin.buffer.read()); print(Image.MAX_IMAGE_PIXELS)"
        )
        step = Preprocessing((8, 8), 1, "bilinear", (0.5,), (0.5,), max_pixels=1000)
        done = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(step), capture_output=True
        )
        assert done.stdout == b"1000\n" and done.stderr == b""

    def test_a_large_image_that_is_read_needs_no_warning(self):
        content = saved(Image.fromarray(noise(64, 64)))
        code = (
            "import sys; from PIL import Image; Image.MAX_IMAGE_PIXELS = 3000;"
            " from medmamba_jax.data.images.decoding import open_image;"
            " print(open_image(sys.stdin.buffer.read(), window='auto').size)"
        )
        done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True)
        assert done.stdout.split() == [b"(64,", b"64)"] and done.stderr == b""

    @pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
    @pytest.mark.parametrize("compression", [None, "tga_rle"])
    def test_a_tga_is_not_taken_for_an_icon(self, mode, compression):
        image = Image.fromarray(noise(32, 16, 3)).convert(mode)
        with pytest.raises(ValueError, match=r"but a TGA image .*: convert it to PNG"):
            open_image(saved(image, "TGA", compression=compression))
        with pytest.raises(ValueError, match=r"but an icon .*: convert it to PNG"):
            open_image(saved(image, "ICO"))

    def test_other_formats_are_not_guessed(self):
        # Pillow would read 16 bits a channel of this one as 8.
        deep = b"P6 2 1 65535 " + bytes(12)
        assert Image.open(io.BytesIO(deep)).mode == "RGB"
        with pytest.raises(ValueError, match="not an image file"):
            open_image(deep)

    @pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage, too
    @pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "npy"])
    def test_what_is_damaged_anywhere_is_opened_or_refused_with_a_value_error(self, format):
        image = Image.fromarray(noise(16, 20, 3))
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        options = {} if format in ("BMP", "GIF", "npy") else {"exif": exif}
        whole = npy(noise(16, 20)) if format == "npy" else saved(image, format, **options)
        rng = np.random.default_rng(0)
        refused = 0
        for _ in range(150):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 150), 2):
                damaged[place] = rng.integers(0, 256)
            try:
                parsed(bytes(damaged)).count_frames()
                open_image(bytes(damaged))
            except ValueError:
                refused += 1
            image_kind(bytes(damaged))
        assert refused

    def test_damaged_exif_is_refused(self):
        content = saved(Image.fromarray(noise(8, 8, 3)), "WEBP", exif=b"Exif\0\0XX*\0nothing here")
        with pytest.raises(ValueError, match="not a complete image file"):
            open_image(content)


@pytest.mark.parametrize("before", range(4))
def test_a_long_text_is_one_wherever_a_character_is_cut(before):
    text = (b"a" * before) + "\u20ac".encode() * HEAD  # of three bytes
    assert kind_of(text) == kind_of(text[:HEAD]) == "a text"
    assert kind_of(b"\xff" + text) == "a file of an unknown kind"


class TestIsImageFile:
    def test_by_its_ending(self, tmp_path):
        suffixes = "png jpg jpeg tif tiff bmp webp gif npy dcm dicom".split()
        wanted = {f"a.{s}" for s in suffixes} | {f"b.{s.upper()}" for s in suffixes}
        for name in (*wanted, "notes.txt"):
            (tmp_path / name).touch()
        assert {path.name for path in tmp_path.iterdir() if is_image_file(path)} == wanted

    @pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619.2.55"])
    def test_dicom_without_an_ending(self, tmp_path, name):
        path = tmp_path / name
        path.write_bytes(bytes(128) + b"DICM")
        assert is_image_file(path)
        path.write_bytes(bytes(128) + b"DIC")
        assert not is_image_file(path)


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix"])
def test_a_photo_of_a_phone_names_the_package_that_reads_it(monkeypatch, brand):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    content = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(64)
    with pytest.raises(DataUnavailableError, match="needs the package pillow-heif"):
        parsed(content).kind()
