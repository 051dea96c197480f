"""16-bit colour, written byte by byte here and read at its full depth."""

import io
import logging
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data import Preprocessing
from medmamba_jax.data.images.decoding import open_image, parsed
from medmamba_jax.data.inspection.image_kinds import image_kind
from medmamba_jax.errors import DataUnavailableError

pytest.importorskip("imagecodecs", reason="the extra colour16 is not installed")

ORIENTATION = 0x0112
COLOUR_TYPES = {2: 4, 3: 2, 4: 6}  # of PNG, by channels
MODES = {2: "LA", 3: "RGB", 4: "RGBA"}


def noise(*shape, high=65536):
    pixels = np.random.default_rng(0).integers(0, high, shape, dtype=np.uint16)
    pixels[0, 0], pixels[0, 1] = 0, high - 1
    return pixels


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, before=b"", after=b""):
    """Rows without a filter; `before` and `after` are chunks around the pixels."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + after
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def interlaced(pixels):
    """A PNG's seven passes (Adam7), for RGB."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 1)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
    rows = b""
    for top, left, down, right in [*passes, (0, 1, 2, 2), (1, 0, 2, 1)]:
        for row in pixels[top::down, left::right]:
            rows += b"\0" + row.astype(">u2").tobytes()
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def lzw(data):
    """Codes of nine bits only: the table is cleared before it needs ten."""
    clear, end = 256, 257
    codes = [clear]
    for start in range(0, len(data), 200):
        codes += [*data[start : start + 200], clear]
    bits = "".join(f"{code:09b}" for code in [*codes[:-1], end])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


COMPRESSIONS = {1: bytes, 5: lzw, 8: zlib.compress}


def tiff(*frames, order="<", compression=1, extra=2, photometric=None, apart=False, **tags):
    """One strip a frame, or one a channel; `extra` says what a channel beyond the colours is."""
    content = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 0)
    link = 4  # where the place of the next directory is to be written
    for pixels in frames:
        height, width, channels = pixels.shape
        planes = np.moveaxis(pixels, -1, 0) if apart else [pixels]
        strips = [COMPRESSIONS[compression](p.astype(f"{order}u2").tobytes()) for p in planes]
        starts = len(content) + np.cumsum([0, *map(len, strips)])[:-1]
        content += b"".join(strips)
        content += b"\0" * (len(content) % 2)
        values = {
            256: ("I", [width]),
            257: ("I", [height]),
            258: ("H", [16] * channels),
            259: ("H", [compression]),
            262: ("H", [photometric or (1 if channels < 3 else 2)]),
            273: ("I", starts.tolist()),
            274: ("H", [tags.get("orientation", 1)]),
            277: ("H", [channels]),
            278: ("I", [height]),
            279: ("I", [len(strip) for strip in strips]),
            284: ("H", [2 if apart else 1]),
        }
        if channels in (2, 4) and extra is not None:
            values[338] = ("H", [extra])
        entries = b""
        for tag, (kind, numbers) in values.items():
            data = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
            if len(data) > 4:
                place = struct.pack(f"{order}I", len(content))
                content += data
                data = place
            entry = struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(numbers))
            entries += entry + data.ljust(4, b"\0")
        here = struct.pack(f"{order}I", len(content))
        content = content[:link] + here + content[link + 4 :]
        content += struct.pack(f"{order}H", len(values)) + entries
        link = len(content)
        content += bytes(4)
    return content


def rounded(values, low, high):
    """0..255 in exact arithmetic, halves to even."""
    low, high = int(low), int(high)
    whole, rest = np.divmod(255 * (np.clip(values.astype(int), low, high) - low), high - low)
    up = (2 * rest > high - low) | ((2 * rest == high - low) & (whole % 2 == 1))
    return (whole + up).astype(np.uint8)


def expected(pixels, low=None, high=None):
    """Colours by one window, alpha by all of its range."""
    colours = pixels.shape[-1] - (pixels.shape[-1] != 3)
    some, alpha = pixels[..., :colours], pixels[..., colours:]
    low, high = (some.min(), some.max()) if low is None else (low, high)
    return np.concatenate([rounded(some, low, high), rounded(alpha, 0, 65535)], axis=-1)


FORMATS = {
    "PNG": png,
    "TIFF": tiff,
    "big-endian TIFF": lambda pixels: tiff(pixels, order=">"),
    "LZW TIFF": lambda pixels: tiff(pixels, compression=5),
    "deflate TIFF": lambda pixels: tiff(pixels, compression=8, order=">"),
    "TIFF of planes": lambda pixels: tiff(pixels, apart=True),
}


@pytest.fixture(params=FORMATS)
def written(request):
    return FORMATS[request.param]


class TestPixels:
    @pytest.mark.parametrize("channels", MODES)
    def test_every_pixel(self, written, channels):
        pixels = noise(11, 13, channels, high=50000)
        opened = open_image(written(pixels))
        assert opened.mode == MODES[channels]
        np.testing.assert_array_equal(np.asarray(opened), expected(pixels))

    def test_pillow_would_read_half(self):
        pixels = noise(11, 13, 3)
        for content in (png(pixels), tiff(pixels)):
            with Image.open(io.BytesIO(content)) as opened:
                np.testing.assert_array_equal(np.asarray(opened), pixels >> 8)

    def test_a_narrow_ramp_keeps_its_levels(self, written):
        ramp = np.arange(30000, 34200, dtype=np.uint16).reshape(60, 70)  # 17 values of high bytes
        pixels = np.stack([ramp, ramp[::-1], ramp.T.reshape(60, 70)], axis=-1)
        opened = np.asarray(open_image(written(pixels)))
        assert all(len(np.unique(opened[..., channel])) > 250 for channel in range(3))

    @pytest.mark.parametrize("channel", range(3))
    def test_pure_colours_stay_what_they_are(self, written, channel):
        pixels = np.zeros((2, 3, 3), np.uint16)
        pixels[:, 1, channel] = 40000
        opened = np.asarray(open_image(written(pixels)))
        assert opened[0, 1, channel] == 255 and opened.sum() == 2 * 255

    @pytest.mark.parametrize(
        ("window", "bounds"), [("full", (0, 65535)), ((1000.0, 3000.0), (1000, 3000))]
    )
    def test_windows_are_those_of_all_colours_and_not_of_alpha(self, written, window, bounds):
        pixels = noise(9, 8, 4) // np.array([50, 20, 5, 2], np.uint16)
        opened = np.asarray(open_image(written(pixels), window=window))
        np.testing.assert_array_equal(opened, expected(pixels, *bounds))

    def test_an_interlaced_png_is_read_without_a_word(self, caplog):
        pixels = noise(16, 24, 3)
        np.testing.assert_array_equal(open_image(interlaced(pixels)), expected(pixels))
        assert not caplog.records
        logging.getLogger("imagecodecs").warning("of something else")
        assert len(caplog.records) == 1

    def test_one_pixel(self, written):
        opened = open_image(written(np.array([[[7, 7, 7, 65535]]], np.uint16)))
        assert np.asarray(opened).tolist() == [[[0, 0, 0, 255]]]

    @pytest.mark.parametrize("extra", [None, 0])
    def test_a_fourth_channel_that_no_one_calls_alpha(self, extra):
        # As Pillow takes 8 bits: alpha if nothing is said, nothing if it is said to be unknown.
        opened = open_image(tiff(noise(5, 6, 4), extra=extra))
        assert opened.mode == ("RGBA" if extra is None else "RGB")
        colours = expected(noise(5, 6, 4))[..., :3]
        np.testing.assert_array_equal(np.asarray(opened)[..., :3], colours)

    @pytest.mark.parametrize("channels", [2, 4])
    def test_colours_multiplied_by_alpha_are_divided_by_it(self, channels):
        pixels = noise(20, 21, channels)
        pixels[..., -1] |= 1 << 15
        multiplied = pixels.copy()
        alpha = pixels[..., -1:].astype(float) / 65535
        multiplied[..., :-1] = np.rint(pixels[..., :-1] * alpha)
        opened = np.asarray(open_image(tiff(multiplied, extra=1), window="full")).astype(int)
        np.testing.assert_allclose(opened, expected(pixels, 0, 65535), atol=1)
        nothing = np.zeros((2, 2, channels), np.uint16)
        assert not np.asarray(open_image(tiff(nothing, extra=1))).any()

    def test_a_gamma_and_a_transparent_colour_are_left_alone(self):
        pixels = noise(5, 6, 3)
        chunks = chunk(b"gAMA", struct.pack(">I", 100000))
        chunks += chunk(b"tRNS", pixels[2, 3].astype(">u2").tobytes())
        opened = open_image(png(pixels, before=chunks))
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), expected(pixels))

    @pytest.mark.parametrize(
        ("channels", "read_as", "kept"), [(2, 1, 1), (2, 3, 1), (3, 3, 3), (4, 3, 3), (4, 4, 4)]
    )
    def test_the_model_gets_alpha_only_if_it_reads_four(self, written, channels, read_as, kept):
        pixels = noise(5, 6, channels)
        preprocessing = Preprocessing(
            image_size=(5, 6), channels=read_as, resize_filter="bilinear", mean=(0.5,), std=(0.5,)
        )
        decoded = preprocessing.decode(written(pixels))
        wanted = np.broadcast_to(expected(pixels)[..., :kept], (5, 6, read_as))
        np.testing.assert_array_equal(decoded, wanted)


class TestOrientation:
    @pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
    def test_all_are_turned_upright(self, orientation, turns):
        pixels = noise(5, 7, 3)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        said = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        for content in (
            png(pixels, before=said),
            png(pixels, after=said),
            tiff(pixels, orientation=orientation),
            tiff(pixels, orientation=orientation, compression=5),
        ):
            upright = np.rot90(expected(pixels), turns)
            np.testing.assert_array_equal(np.asarray(open_image(content)), upright)


class TestFrames:
    @pytest.mark.parametrize("channels", MODES)
    def test_each_can_be_had(self, channels):
        pages = [np.roll(noise(6, 5, channels), page, axis=0) for page in range(4)]
        content = tiff(*pages)
        assert parsed(content).count_frames() == 4
        for frame, page in enumerate(pages):
            opened = open_image(content, frame=frame)
            np.testing.assert_array_equal(np.asarray(opened), expected(page))
        with pytest.raises(ValueError, match=r"frame 4 was asked for .*there are 4"):
            open_image(content, frame=4)

    def test_a_png_has_one(self):
        assert parsed(png(noise(3, 4, 3))).count_frames() == 1
        with pytest.raises(ValueError, match="there are 1"):
            open_image(png(noise(3, 4, 3)), frame=1)

    def test_an_animated_png_is_refused(self):
        control = chunk(b"acTL", struct.pack(">II", 2, 0))
        first = chunk(b"fcTL", struct.pack(">5IHHBB", 0, 4, 3, 0, 0, 1, 1, 0, 0))
        content = png(noise(3, 4, 3), before=control + first)
        with pytest.raises(
            ValueError, match="animated 16-bit PNG cannot be read at its full depth"
        ):
            open_image(content)
        assert image_kind(content) == "animated 16-bit PNG"


class TestWhatCannotBeRead:
    def test_cmyk(self):
        content = tiff(noise(5, 6, 4), extra=None, photometric=5)
        with pytest.raises(ValueError, match=r"16-bit CMYK TIFF cannot be read .*: save it as"):
            open_image(content)
        assert image_kind(content) == "TIFF, 16-bit CMYK"

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
    def test_a_truncated_file(self, written, part):
        whole = written(noise(64, 64, 3))
        with pytest.raises(ValueError, match=r"^not (an|a complete) image file|^a TIFF of a kind"):
            open_image(whole[: int(part * len(whole))])

    def test_a_frame_that_is_cut_off_is_counted_as_damage(self):
        pages = tiff(*[noise(6, 5, 2)] * 3)
        with pytest.raises(ValueError, match="frame 2 is not in it"):
            parsed(pages[:-150]).count_frames()

    @pytest.mark.parametrize("channels", MODES)
    @pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage, too
    def test_damage_anywhere(self, written, channels):
        whole = written(noise(16, 20, channels))
        rng = np.random.default_rng(0)
        refused = 0
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, 200, 2):
                damaged[rng.choice([place, -place])] = rng.integers(0, 256)
            try:
                parsed(bytes(damaged)).count_frames()
                open_image(bytes(damaged))
            except ValueError as error:
                assert "\n" not in str(error)
                refused += 1
            image_kind(bytes(damaged))
        assert refused

    @pytest.mark.parametrize("channels", MODES)
    def test_a_decompression_bomb_is_never_decoded(self, written, channels, monkeypatch):
        content = written(noise(16, 16, channels))
        monkeypatch.setitem(sys.modules, "imagecodecs", None)  # importing it would raise
        with pytest.raises(ValueError, match=r"too large \(16 x 16 pixels"):
            open_image(content, max_pixels=255)


class TestWithoutTheLibrary:
    def test_the_remedy_is_named(self, written, monkeypatch):
        for library in ("imagecodecs", "tifffile"):
            monkeypatch.setitem(sys.modules, library, None)
        remedy = r"(16-bit colour|TIFF) needs .*: pip install \"medmamba-jax\[formats\]\"$"
        with pytest.raises(DataUnavailableError, match=remedy):
            open_image(written(noise(5, 6, 3)))

    def test_grey_does_not_need_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
        grey = noise(5, 6)
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, "PNG")
        np.testing.assert_array_equal(open_image(buffer.getvalue()), rounded(grey, 0, 65535))

    def test_inspect_stops_with_it(self, tmp_path, monkeypatch, command):
        for name in "ab":
            (tmp_path / "images" / name).mkdir(parents=True)
            (tmp_path / "images" / name / "1.png").write_bytes(png(noise(5, 6, 3)))
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
        with pytest.raises(DataUnavailableError, match=r"medmamba-jax\[formats\]"):
            command("inspect", tmp_path / "images", "--out", tmp_path / "inspected")
        assert not (tmp_path / "inspected").exists()


def test_inspect_names_the_depth(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for name, written in {"a": png, "b": tiff}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for channels in MODES:
            path = tmp_path / "images" / name / f"{channels}.{written.__name__}"
            path.write_bytes(written(noise(20, 24, channels)))
    out = "\n".join(command("inspect", "images"))
    for kind in ("colour", "grey with alpha", "colour with alpha"):
        assert f"PNG, 16-bit {kind} (1)" in out and f"TIFF, 16-bit {kind} (1)" in out
    assert "cannot be read: none" in out
