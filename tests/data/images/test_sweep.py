"""Files of every kind that the libraries can write, against the numbers that were written.

Each table below names kinds of files, and each file is equal to its own pixels, or refused with a
message. The expected values come from the pixels themselves, by the formulas of the standards
(DICOM PS3.3, C.7.6.3 and C.11.2), or from the codec alone where the compression loses something.
"""

import io
import itertools
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from medmamba_jax.data.images.decoding import open_image, parsed
from medmamba_jax.data.images.windowing import to_uint8
from medmamba_jax.errors import DataUnavailableError

imagecodecs = pytest.importorskip("imagecodecs", reason="the extra formats is not installed")
nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
tifffile = pytest.importorskip("tifffile")

from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402


def scaled(values, low=None, high=None):
    """0..255, not rounded, in more digits than the code under test has."""
    values = np.asarray(values).astype(np.longdouble)
    low = values.min() if low is None else np.longdouble(low)
    high = values.max() if high is None else np.longdouble(high)
    return np.clip((values - low) / (high - low), 0, 1) * 255


def assert_opens_as(expected, content, message="", **options):
    opened = np.asarray(open_image(content, **options))
    assert opened.dtype == np.uint8 and opened.shape == np.shape(expected), message
    worst = np.abs(opened - np.asarray(expected, np.longdouble)).max()
    assert worst <= 0.5 + 1e-6, f"{message}: off by {worst}"


def limits(bits, signed):
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def noise(shape, bits=8, signed=False, seed=0):
    """Integers of the whole range; the first two pixels are its ends."""
    low, high = limits(bits, signed)
    dtype = np.uint64 if bits == 64 and not signed else np.int64
    pixels = np.random.default_rng(seed).integers(low, high, shape, dtype=dtype, endpoint=True)
    for image in pixels.reshape(-1, *shape[-2:]) if len(shape) > 2 else [pixels]:
        image.flat[:2] = low, high
    return pixels


class TestWindows:
    def test_64_bit_integers_that_are_near_each_other(self):
        np.testing.assert_array_equal(
            to_uint8(np.arange(4) + 2**60, "auto"), np.array([0, 85, 170, 255])
        )
        ends = np.array([-(2**63), -(2**62), 2**63 - 1])
        np.testing.assert_array_equal(to_uint8(ends, "auto"), np.array([0, 64, 255]))

    def test_numbers_too_far_apart_are_refused(self):
        with pytest.raises(ValueError, match="more than float64 can hold: divide"):
            open_image(np.array([[-1.7e308, 1.7e308]]))


# TIFF: byte order x codec x dtype x layout x colour -------------------------------------------

ORDERS = "<>"
CODECS = {  # name -> what makes it lossless
    **{name: {} for name in (None, "lzw", "zlib", "deflate", "zstd", "lzma", "packbits", "png")},
    "jpegxl": {"lossless": True},
    "jpeg2000": {"level": 0, "reversible": True},
    "lerc": {"level": 0},
    "webp": {"lossless": True},
}
DTYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
LAYOUTS = (
    {},
    {"rowsperstrip": 3},
    {"tile": (16, 16)},
    {"predictor": True},
    {"tile": (16, 16), "predictor": True},
    {"bigtiff": True},
)
COLOURS = {  # name -> shape, and options of tifffile
    "grey": ((24, 17), {"photometric": "minisblack"}),
    "white": ((7, 18), {"photometric": "miniswhite"}),
    "colour": ((7, 18, 3), {"photometric": "rgb"}),
    "planes": ((3, 19, 5), {"photometric": "rgb", "planarconfig": "separate"}),
    "alpha": ((7, 5, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
}


def written_tiff(pixels, **options):
    """Returns None for what tifffile does not write."""
    buffer = io.BytesIO()
    try:
        tifffile.imwrite(buffer, pixels, metadata=None, **options)
    except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError):
        return None
    return buffer.getvalue()


def tiff_pixels(shape, dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return np.random.default_rng(0).normal(0, 100, shape).astype(dtype)
    return noise(shape, 8 * dtype.itemsize, dtype.kind == "i").astype(dtype)


def tiff_expected(pixels, colour):
    if colour == "planes":
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype == np.uint8:
        expected = pixels.astype(float)
    elif colour == "alpha":
        limit = np.iinfo(pixels.dtype).max
        alpha = scaled(pixels[..., 3:], 0, limit)
        expected = np.concatenate([scaled(pixels[..., :3]), alpha], axis=-1)
    else:
        expected = scaled(pixels)
    return 255 - expected if colour == "white" else expected


def check_tiff(order, codec, dtype, layout, colour):
    if codec == "jpeg2000" and (order == ">" or dtype[1] not in "12"):
        return 0  # tifffile swaps the bytes before it compresses them; OpenJPEG rounds 32 bits
    if codec in ("jpegxl", "jpeg2000", "lerc", "png", "webp") and "predictor" in layout:
        return 0
    if colour == "alpha" and dtype not in ("u1", "u2", "u4"):
        return 0  # refused, see below
    shape, options = COLOURS[colour]
    pixels = tiff_pixels(shape, dtype)
    content = written_tiff(
        pixels,
        byteorder=order,
        compression=codec,
        compressionargs=CODECS[codec] or None,
        **options,
        **layout,
    )
    if content is None:
        return 0
    assert_opens_as(
        tiff_expected(pixels, colour), content, f"{order} {codec} {dtype} {layout} {colour}"
    )
    return 1


@pytest.mark.parametrize("codec", CODECS, ids=str)
class TestTiff:
    def test_each_kind(self, codec):
        names = itertools.cycle(COLOURS)  # five, so that each row meets all of them
        done = sum(
            check_tiff(order, codec, dtype, layout, next(names))
            for order, dtype, layout in itertools.product(ORDERS, DTYPES, LAYOUTS)
        )
        assert done >= 2  # WebP holds colour of 8 bits only

    @pytest.mark.nightly
    def test_the_whole_product(self, codec):
        for order, dtype, layout, colour in itertools.product(ORDERS, DTYPES, LAYOUTS, COLOURS):
            check_tiff(order, codec, dtype, layout, colour)


def packed_tiff(pixels, bits, photometric, fill_order=1):
    """A TIFF of a few bits for each sample, whose rows end at whole bytes."""
    height, width, samples = pixels.shape
    rows = b""
    for row in pixels.reshape(height, -1).tolist():
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        parts = [text[i : i + 8][:: 1 if fill_order == 1 else -1] for i in range(0, len(text), 8)]
        rows += bytes(int(part, 2) for part in parts)
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric)]
    tags += [(266, fill_order), (273, 8), (277, samples), (278, height), (279, len(rows))]
    depths = 8 + len(rows)
    entries = b"".join(
        struct.pack("<HHII", tag, 3, samples, depths if samples > 2 else value)
        if tag == 258
        else struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in tags
    )
    place = depths + 2 * samples
    return (
        struct.pack("<2sHI", b"II", 42, place)
        + rows
        + struct.pack("<H", bits) * samples
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


class TestOtherTiff:
    @pytest.mark.parametrize(
        ("bits", "fill_order"),
        [*((bits, 1) for bits in (1, 2, 4, 10, 12, 14)), *((bits, 2) for bits in (1, 2, 4))],
    )
    @pytest.mark.parametrize("samples", [1, 3])
    def test_packed_bits(self, bits, samples, fill_order):
        pixels = noise((7, 5, samples), bits)
        content = packed_tiff(pixels, bits, 1 if samples == 1 else 2, fill_order)
        expected = scaled(pixels, *limits(bits, False)) if bits <= 8 else scaled(pixels)
        assert_opens_as(expected[..., 0] if samples == 1 else expected, content)

    @pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
    def test_fax(self, compression):
        bits = noise((9, 13)) > 127
        buffer = io.BytesIO()
        Image.fromarray(bits).save(buffer, "TIFF", compression=compression)
        assert_opens_as(bits * 255, buffer.getvalue())

    @pytest.mark.parametrize("options", [{"planarconfig": "separate"}, {"tile": (16, 16)}], ids=str)
    def test_cmyk(self, options):
        inks = noise((19, 17, 4)).astype(np.uint8)
        stored = np.moveaxis(inks, -1, 0).copy() if "planarconfig" in options else inks
        content = written_tiff(stored, photometric="separated", compression="lzw", **options)
        light = 255 - inks.astype(int)
        expected = light[..., :3] * light[..., 3:] / 255
        opened = np.asarray(open_image(content)).astype(int)
        assert np.abs(opened - expected).max() <= 1  # Pillow rounds two times
        np.testing.assert_array_equal(
            opened, np.asarray(Image.frombytes("CMYK", (17, 19), inks.tobytes()).convert("RGB"))
        )

    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize(
        "options", [{}, {"compression": "deflate", "predictor": True}], ids=str
    )
    def test_a_palette(self, order, options):
        table = noise((3, 256), 16, seed=1).astype(np.uint16)
        index = noise((9, 7)).astype(np.uint8)
        content = written_tiff(
            index, photometric="palette", colormap=table, byteorder=order, **options
        )
        assert_opens_as(np.moveaxis(table[:, index] >> 8, 0, -1), content)

    @pytest.mark.parametrize("subsampling", [None, (1, 1), (2, 1), (2, 2)])
    def test_jpeg(self, subsampling):
        pixels = noise((32, 48, 3)).astype(np.uint8)
        options = {"photometric": "rgb"} if subsampling is None else {"photometric": "ycbcr"}
        content = written_tiff(pixels, compression="jpeg", subsampling=subsampling, **options)
        assert_opens_as(tifffile.imread(io.BytesIO(content)), content)

    def test_jpeg_2000_in_big_endian_files_is_what_the_codec_says(self):
        content = written_tiff(
            noise((9, 7), 16).astype(np.uint16), byteorder=">", compression="jpeg2000"
        )
        start = content.find(b"\xff\x4f\xff\x51")
        start = start if b"jP  " not in content else content.find(b"jP  ") - 4
        assert_opens_as(scaled(imagecodecs.jpeg2k_decode(content[start:])), content)

    def test_frames_of_imagej_and_ome(self):
        stack = noise((3, 8, 6), 16).astype(np.uint16)
        for options in ({"imagej": True}, {"ome": True}, {}):
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, stack, photometric="minisblack", **options)
            assert parsed(buffer.getvalue()).count_frames() == 3
            for frame in range(3):
                assert_opens_as(scaled(stack[frame]), buffer.getvalue(), frame=frame)

    @pytest.mark.parametrize(
        ("pixels", "options", "message"),
        [
            (noise((9, 7, 3)), {"photometric": "ycbcr"}, "of the kind YCbCr .*: save it"),
            (noise((9, 7)) * 1j, {}, "of a kind that cannot be read: save it"),
            (
                noise((9, 7, 4)) * 0.1,
                {"extrasamples": ["unassalpha"]},
                "float64 with alpha .*: save",
            ),
            (noise((9, 7, 4)), {"extrasamples": ["assocalpha"]}, "int64 with alpha .*: save"),
            (
                noise((16, 16, 16)).astype(np.uint8),
                {"volumetric": True, "tile": (16, 16, 16), "photometric": "minisblack"},
                "of volumes cannot be read: save",
            ),
            (
                noise((9, 7, 3)).astype(np.uint8),
                {
                    "photometric": "minisblack",
                    "planarconfig": "contig",
                    "extrasamples": ["unspecified", "unassalpha"],
                },
                "alpha after other channels cannot be read: save",
            ),
            (
                noise((9, 7), 32).astype(np.uint32),
                {"compression": "jpeg2000"},
                "JPEG 2000 of 32 bits cannot be read exactly: save",
            ),
        ],
    )
    def test_what_is_refused(self, pixels, options, message):
        if pixels.shape[-1] == 4 and "photometric" not in options:
            options = options | {"photometric": "rgb"}
        if pixels.dtype == np.int64 and "ycbcr" in options.values():
            pixels = pixels.astype(np.uint8)
        with pytest.raises(ValueError, match=message):
            open_image(written_tiff(pixels, **options))

    def test_a_stack_of_one_directory(self):
        buffer = io.BytesIO()
        stack = noise((3, 8, 6), 16).astype(np.uint16)
        tifffile.imwrite(buffer, stack, imagej=True, truncate=True)
        assert_opens_as(scaled(stack[0]), buffer.getvalue())
        for use in (lambda c: parsed(c).count_frames(), lambda c: open_image(c, frame=1)):
            with pytest.raises(ValueError, match="one directory for 3 frames cannot be read: save"):
                use(buffer.getvalue())


class TestTiffWithoutTheExtra:
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("compression", [None, "lzw", "deflate", "packbits"])
    def test_plain_kinds(self, order, compression, monkeypatch):
        eight, deep = noise((9, 7)).astype(np.uint8), noise((9, 7), 16).astype(np.uint16)
        colour, table = noise((9, 7, 3)).astype(np.uint8), noise((3, 256), 16).astype(np.uint16)
        kinds = [
            (eight, {"photometric": "minisblack"}, eight),
            (eight, {"photometric": "miniswhite"}, 255 - eight),
            (eight > 9, {"photometric": "minisblack"}, (eight > 9) * 255),
            (eight > 9, {"photometric": "miniswhite"}, (eight <= 9) * 255),
            (colour, {"photometric": "rgb"}, colour),
            (eight, {"photometric": "palette", "colormap": table}, (table >> 8).T[eight]),
            (deep, {"photometric": "minisblack"}, scaled(deep)),
            *[(deep, {"photometric": "miniswhite"}, 255 - scaled(deep))] * (order == "<"),
        ]
        options = {"byteorder": order, "compression": compression}
        files = [written_tiff(pixels, **kind, **options) for pixels, kind, _ in kinds]
        others = [
            written_tiff(deep.astype(np.float32), **options),
            written_tiff(deep.astype(">u2"), photometric="miniswhite", byteorder=">"),
        ]
        monkeypatch.setitem(sys.modules, "tifffile", None)
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
        for content, (_, kind, expected) in zip(files, kinds, strict=True):
            assert_opens_as(expected, content, str(kind))
        for content in others:
            with pytest.raises(DataUnavailableError, match=r"TIFF needs .*medmamba-jax\[formats\]"):
                open_image(content)

    @pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
    @pytest.mark.parametrize("orientation", [1, 6])
    def test_every_frame_of_16_bits(self, photometric, orientation, monkeypatch):
        stack, buffer = noise((3, 9, 7), 16).astype(np.uint16), io.BytesIO()
        turned = [(274, 3, 1, orientation, True)]
        with tifffile.TiffWriter(buffer) as writer:
            for page in stack:
                writer.write(page, photometric=photometric, metadata=None, extratags=turned)
        monkeypatch.setitem(sys.modules, "tifffile", None)
        for frame in (2, 0, 1):
            expected = scaled(stack[frame])
            expected = 255 - expected if photometric == "miniswhite" else expected
            expected = np.rot90(expected, -1) if orientation == 6 else expected
            assert_opens_as(expected, buffer.getvalue(), frame=frame)


# DICOM ------------------------------------------------------------------------------------------

NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
BIG = uid.ExplicitVRBigEndian
DEPTHS = (  # bits allocated and stored
    *((8, 8), (8, 6), (16, 8), (16, 10), (16, 12), (16, 15), (16, 16)),
    *((32, 20), (32, 32)),
)


def dicom(
    pixels,
    allocated=8,
    stored=8,
    *,
    high=None,
    signed=False,
    photometric="MONOCHROME2",
    syntax=uid.ExplicitVRLittleEndian,
    frames=False,
    planar=0,
    encode=None,
    preamble=True,
    data=None,
    **attributes,
):
    """A file of these stored numbers; `encode` compresses the words of a frame."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    header.SOPClassUID, header.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    shape = pixels.shape[1:] if frames else pixels.shape
    header.SamplesPerPixel = shape[2] if len(shape) == 3 else 1
    header.PhotometricInterpretation = photometric
    if header.SamplesPerPixel > 1:
        header.PlanarConfiguration = planar
    if frames:
        header.NumberOfFrames = len(pixels)
    header.Rows, header.Columns = shape[:2]
    header.BitsAllocated, header.BitsStored = allocated, stored
    header.HighBit = stored - 1 if high is None else high
    header.PixelRepresentation = int(signed)
    order = ">" if syntax == BIG else "<"
    words = pixels.astype(np.int64) & ((1 << stored) - 1)
    words = (words << (header.HighBit + 1 - stored)).astype(f"{order}u{allocated // 8}")
    if encode:
        header.PixelData = encapsulate([encode(frame) for frame in (words if frames else [words])])
        header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
    else:
        words = np.moveaxis(words, -1, -3) if planar else words
        data = words.tobytes() if data is None else data
        header.PixelData = data + b"\0" * (len(data) % 2)
        header["PixelData"].VR = "OW" if syntax == NATIVE[0] or allocated > 8 else "OB"
    for name, value in attributes.items():
        setattr(header, name, value)
    return saved_dicom(header, preamble=preamble)


def saved_dicom(header, *, preamble=True):
    syntax = header.file_meta.TransferSyntaxUID
    buffer = io.BytesIO()
    header.save_as(
        buffer,
        enforce_file_format=preamble,
        implicit_vr=syntax == NATIVE[0],
        little_endian=syntax != BIG,
    )
    return buffer.getvalue()


def grey_expected(pixels, stored, signed, photometric):
    expected = pixels.astype(float) if stored == 8 and not signed else scaled(pixels)
    return 255 - expected if photometric == "MONOCHROME1" else expected


def rle(words):
    """Each byte of the words is a segment, the highest first (PS3.5, G)."""
    planes = words.astype(words.dtype.newbyteorder(">")).reshape(-1, 1).view(np.uint8).T
    segments = [imagecodecs.packbits_encode(np.ascontiguousarray(plane)) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    places = np.cumsum([64, *map(len, segments[:-1])]).tolist()
    return struct.pack("<16I", len(segments), *places, *[0] * (15 - len(segments))) + b"".join(
        segments
    )


def jpeg_2000(signed, stored, **options):
    def encode(words):
        numbers = words.astype(np.int64)
        if signed:
            numbers = (numbers ^ (1 << stored - 1)) - (1 << stored - 1)
        size = 1 if stored <= 8 else 2 if stored <= 16 else 4
        numbers = numbers.astype(f"{'i' if signed else 'u'}{size}")
        options = {"level": 0, "reversible": True, "codecformat": "j2k", "bitspersample": stored}
        return imagecodecs.jpeg2k_encode(numbers, **options)

    return encode


def in_words(function, **options):
    """Compresses in words of 8 or 16 bits, the fewest that hold the pixels."""
    return lambda signed, stored: (
        lambda words: function(
            words.astype(np.uint8 if stored <= 8 else np.uint16),
            **({"bitspersample": stored} if options else {}),
        )
    )


COMPRESSIONS = {  # transfer syntax -> (signed, bits) -> the function that compresses a frame
    uid.RLELossless: lambda signed, stored: rle,
    uid.JPEGLossless: in_words(imagecodecs.ljpeg_encode, bits=True),
    uid.JPEGLosslessSV1: in_words(imagecodecs.ljpeg_encode, bits=True),
    uid.JPEGLSLossless: in_words(imagecodecs.jpegls_encode),
    uid.JPEG2000Lossless: jpeg_2000,
    uid.JPEG2000: jpeg_2000,
    uid.HTJ2KLossless: in_words(imagecodecs.htj2k_encode),
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
class TestGreyDicom:
    @pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
    def test_native(self, syntax, photometric):
        for (allocated, stored), signed in itertools.product(DEPTHS, (False, True)):
            for high, frames in itertools.product((stored - 1, allocated - 1), (False, True)):
                pixels = noise((2, 7, 5) if frames else (7, 5), stored, signed)
                content = dicom(
                    *(pixels, allocated, stored),
                    high=high,
                    signed=signed,
                    photometric=photometric,
                    syntax=syntax,
                    frames=frames,
                )
                last = pixels[-1] if frames else pixels
                expected = grey_expected(last, stored, signed, photometric)
                message = f"{allocated} {stored} {high} {signed} {frames}"
                assert_opens_as(expected, content, message, frame=int(frames))
                full = scaled(last, *limits(stored, signed))
                full = 255 - full if photometric == "MONOCHROME1" else full
                assert_opens_as(full, content, message, frame=int(frames), window="full")

    @pytest.mark.parametrize("syntax", COMPRESSIONS, ids=lambda syntax: syntax.name)
    def test_compressed(self, syntax, photometric):
        for (allocated, stored), signed in itertools.product(DEPTHS, (False, True)):
            few = syntax not in (uid.RLELossless, uid.JPEG2000, uid.JPEG2000Lossless)
            if few and (allocated == 32 or (syntax == uid.HTJ2KLossless and signed)):
                continue
            pixels = noise((2, 9, 7), stored, signed)
            content = dicom(
                *(pixels, allocated, stored),
                signed=signed,
                photometric=photometric,
                syntax=syntax,
                frames=True,
                encode=COMPRESSIONS[syntax](signed, stored),
            )
            message = f"{allocated} {stored} {signed}"
            if stored == 32 and syntax != uid.RLELossless:
                with pytest.raises(ValueError, match=r"cannot be read exactly|32"):
                    open_image(content)
                continue
            expected = grey_expected(pixels[1], stored, signed, photometric)
            assert_opens_as(expected, content, message, frame=1)


def junk_above(pixels, bits):
    return pixels | (noise(pixels.shape, 16 - bits, seed=3) << bits)


LUT_SIZES = ((4096, 0, 8), (4096, 0, 12), (4096, 0, 16), (255, 1000, 10), (1000, 100, 14))


def lut(first, entries, bits, vr="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "US", np.asarray(entries).tolist())
    return [item]


def looked_up(values, first, entries):
    return np.asarray(entries)[np.clip(values - first, 0, len(entries) - 1)]


def windowed(values, center, width, function):
    """The formulas of PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    values = values.astype(np.longdouble)
    if function == "SIGMOID":
        return 255 / (1 + np.exp(-4 * (values - center) / width))
    half, middle = width / 2, center
    if function == "LINEAR":
        half, middle = (width - 1) / 2, center - 0.5
    inside = ((values - middle) / (2 * half or 1) + 0.5) * 255
    return np.where(values <= middle - half, 0, np.where(values > middle + half, 255, inside))


class TestDicomSettings:
    TWELVE = noise((9, 7), 12)

    @pytest.mark.parametrize("bits", [10, 12])
    def test_other_bits_are_no_part_of_the_pixels(self, bits):
        pixels = noise((9, 7), bits)
        data = junk_above(pixels, bits).astype("<u2").tobytes()
        assert_opens_as(scaled(pixels), dicom(pixels, 16, bits, data=data))
        signed = noise((9, 7), bits, signed=True)
        data = junk_above(signed & ((1 << bits) - 1), bits).astype("<u2").tobytes()
        for slope in (1, -2):
            content = dicom(
                *(signed, 16, bits),
                signed=True,
                data=data,
                RescaleSlope=slope,
                RescaleIntercept=7,
            )
            assert_opens_as(scaled(slope * signed + 7), content)

    @pytest.mark.parametrize("syntax", [NATIVE[1], BIG], ids=lambda syntax: syntax.name)
    @pytest.mark.parametrize(("count", "first", "bits"), LUT_SIZES)
    def test_tables_of_interest(self, count, first, bits, syntax):
        entries = noise((1, count), bits)[0]
        content = dicom(
            self.TWELVE, 16, 12, syntax=syntax, VOILUTSequence=lut(first, entries, bits)
        )
        expected = scaled(looked_up(self.TWELVE, first, entries), 0, (1 << bits) - 1)
        assert_opens_as(expected, content)
        signed = self.TWELVE - 2048
        content = dicom(
            *(signed, 16, 12),
            signed=True,
            syntax=syntax,
            VOILUTSequence=lut(-first, entries, bits, "SS"),
        )
        expected = scaled(looked_up(signed, -first, entries), 0, (1 << bits) - 1)
        assert_opens_as(expected, content)

    @pytest.mark.parametrize("window", ["auto", "full", (100.0, 5000.0)])
    @pytest.mark.parametrize(("count", "first", "bits"), LUT_SIZES)
    def test_tables_of_the_modality(self, count, first, bits, window):
        entries = noise((1, count), bits)[0]
        content = dicom(self.TWELVE, 16, 12, ModalityLUTSequence=lut(first, entries, bits))
        values = looked_up(self.TWELVE, first, entries)
        reached = looked_up(np.arange(4096), first, entries)
        bounds = {"auto": (), "full": (reached.min(), reached.max())}.get(window, window)
        assert_opens_as(scaled(values, *bounds), content, window=window)

    def test_tables_at_the_ends_of_16_bits(self):
        entries = noise((1, 20000), 16)[0]
        sixteen = noise((9, 7), 16)
        content = dicom(sixteen, 16, 16, VOILUTSequence=lut(40000, entries, 16))
        assert_opens_as(scaled(looked_up(sixteen, 40000, entries), 0, 65535), content)
        signed = sixteen - 32768
        table = lut(-32768, entries, 16, "SS")
        content = dicom(signed, 16, 16, signed=True, ModalityLUTSequence=table)
        assert_opens_as(scaled(looked_up(signed, -32768, entries)), content)

    @pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
    @pytest.mark.parametrize(
        "window", [(2000, 1000), (40.5, 400), (100, 1), (100, 2), (0, 4096), (-5, 10.5)]
    )
    def test_windows(self, function, window):
        said = {"WindowCenter": window[0], "WindowWidth": window[1], "VOILUTFunction": function}
        expected = windowed(self.TWELVE, *window, function)
        assert_opens_as(expected, dicom(self.TWELVE, 16, 12, **said))
        hounsfield = 2 * self.TWELVE - 1024
        content = dicom(self.TWELVE, 16, 12, RescaleSlope=2, RescaleIntercept=-1024, **said)
        assert_opens_as(windowed(hounsfield, *window, function), content)

    @pytest.mark.parametrize(
        ("said", "units"),
        [({"RescaleIntercept": -1024}, lambda x: x - 1024), ({"RescaleSlope": 2}, lambda x: 2 * x)],
        ids=["intercept", "slope"],
    )
    def test_half_a_rescaling(self, said, units):
        content = dicom(self.TWELVE, 16, 12, **said)
        assert_opens_as(scaled(units(self.TWELVE), -160, 240), content, window=(-160.0, 240.0))

    def test_a_slope_of_zero_is_refused(self):
        with pytest.raises(ValueError, match=r"RescaleSlope 0 .*: correct its header"):
            open_image(dicom(self.TWELVE, 16, 12, RescaleSlope=0, RescaleIntercept=5))

    @pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
    @pytest.mark.parametrize("name", ["FloatPixelData", "DoubleFloatPixelData"])
    def test_floating_point_numbers(self, syntax, name):
        bits = 32 if name == "FloatPixelData" else 64
        values = np.random.default_rng(0).normal(0, 100, (9, 7)).astype(f"f{bits // 8}")
        header = pydicom.dcmread(io.BytesIO(dicom(noise((9, 7)), syntax=syntax)))
        del header.PixelData, header.BitsStored, header.HighBit, header.PixelRepresentation
        order = ">" if syntax == BIG else "<"
        header.BitsAllocated = bits
        setattr(header, name, values.astype(values.dtype.newbyteorder(order)).tobytes())
        content = saved_dicom(header)
        assert_opens_as(scaled(values), content)
        with pytest.raises(ValueError, match="no full range"):
            open_image(content, window="full")
        header.RescaleSlope, header.RescaleIntercept = -2, 3
        header.WindowCenter, header.WindowWidth = 10, 100
        expected = windowed(-2 * values.astype(float) + 3, 10, 100, "LINEAR")
        assert_opens_as(expected, saved_dicom(header))

    @pytest.mark.parametrize("syntax", NATIVE[:3], ids=lambda syntax: syntax.name)
    def test_without_a_preamble(self, syntax):
        content = dicom(self.TWELVE, 16, 12, syntax=syntax)
        assert_opens_as(scaled(self.TWELVE), content[132:])
        start = content.find(b"\x08\0\x16\0" if syntax != BIG else b"\0\x08\0\x16", 132)
        assert_opens_as(scaled(self.TWELVE), content[start:])

    @pytest.mark.parametrize("mark", [b"II*\0", b"MM\0*"])
    def test_a_preamble_that_is_the_header_of_a_tiff(self, mark):
        content = dicom(self.TWELVE, 16, 12)
        assert_opens_as(scaled(self.TWELVE), mark + content[4:])


class TestWithoutACodec:
    def test_sound_files_are_not_called_damaged(self, monkeypatch):
        pixels = noise((9, 7), 12)
        for syntax in (uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless):
            content = dicom(pixels, 16, 12, syntax=syntax, encode=COMPRESSIONS[syntax](False, 12))
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, "imagecodecs", None)
                with pytest.raises(
                    DataUnavailableError, match=r"DICOM \(JPEG.*\) needs .*medmamba-jax\[formats\]"
                ):
                    open_image(content)
            assert_opens_as(scaled(pixels), content)

    def test_damage_ends_in_an_error_and_not_in_the_end_of_the_process(self):
        pixels, rng = noise((16, 12), 12), np.random.default_rng(0)
        for syntax in COMPRESSIONS:
            code = COMPRESSIONS[syntax](False, 12)(pixels.astype(np.uint16))
            refused = 0
            # CharLS takes seconds to raise its error.
            for _ in range(1 if syntax == uid.JPEGLSLossless else 40):
                damaged = bytearray(code)
                damaged[rng.integers(2, len(code))] = rng.integers(0, 256)
                damaged = bytes(damaged[: rng.integers(len(code) // 2, len(code))])
                content = dicom(
                    *(pixels, 16, 12),
                    syntax=syntax,
                    encode=lambda frame, code=damaged: TestColourDicom.even(code),
                )
                try:
                    open_image(content)
                except ValueError:
                    refused += 1
            assert refused


class TestColourDicom:
    RGB = noise((7, 6, 3)).astype(np.uint8)

    @staticmethod
    def to_rgb(ybr):
        """PS3.3, C.7.6.3.1.2, solved for red, green and blue."""
        y, b, r = np.moveaxis(ybr.astype(float), -1, 0)
        b, r = b - 128, r - 128
        rgb = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], axis=-1)
        return np.clip(np.rint(rgb), 0, 255)

    @pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
    @pytest.mark.parametrize("planar", [0, 1])
    def test_native(self, syntax, planar):
        stack = np.stack([self.RGB[::-1], self.RGB])
        options = {"syntax": syntax, "planar": planar}
        assert_opens_as(self.RGB, dicom(stack, photometric="RGB", frames=True, **options), frame=1)
        content = dicom(self.RGB, photometric="YBR_FULL", **options)
        assert_opens_as(self.to_rgb(self.RGB), content)

    def test_half_the_colours(self):
        y, b, r = self.RGB[..., 0], self.RGB[:, ::2, 1], self.RGB[:, ::2, 2]
        data = np.stack([y[:, ::2], y[:, 1::2], b, r], axis=-1).tobytes()
        whole = np.stack([y, b.repeat(2, axis=1), r.repeat(2, axis=1)], axis=-1)
        content = dicom(self.RGB, photometric="YBR_FULL_422", data=data)
        assert_opens_as(self.to_rgb(whole), content)

    @pytest.mark.parametrize("kind", ["HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420"])
    def test_other_kinds_are_refused_by_name(self, kind):
        with pytest.raises(ValueError, match=f"colours of the kind {kind} .*: convert it"):
            open_image(dicom(self.RGB, photometric=kind))

    @staticmethod
    def even(content):
        return content + b"\0" * (len(content) % 2)

    @pytest.mark.parametrize(
        ("photometric", "options"),
        [
            ("YBR_RCT", {"reversible": True, "mct": True}),
            ("YBR_ICT", {"reversible": False, "mct": True}),
            ("RGB", {"reversible": True, "mct": False}),
            ("YBR_FULL", {"reversible": True, "mct": False}),
        ],
    )
    def test_jpeg_2000(self, photometric, options):
        code = imagecodecs.jpeg2k_encode(self.RGB, level=0, codecformat="j2k", **options)
        right = imagecodecs.jpeg2k_decode(code)
        content = dicom(
            self.RGB,
            photometric=photometric,
            syntax=uid.JPEG2000,
            encode=lambda frame: self.even(code),
        )
        assert_opens_as(self.to_rgb(right) if photometric == "YBR_FULL" else right, content)

    def test_lossless(self):
        for syntax, code, kinds in (
            (uid.JPEGLSLossless, imagecodecs.jpegls_encode(self.RGB), ("RGB", "YBR_FULL")),
            (uid.JPEGLosslessSV1, imagecodecs.jpeg_encode(self.RGB, lossless=True), ("RGB",)),
        ):
            for photometric in kinds:
                content = dicom(
                    self.RGB,
                    photometric=photometric,
                    syntax=syntax,
                    encode=lambda frame, code=code: self.even(code),
                )
                right = self.RGB if photometric == "RGB" else self.to_rgb(self.RGB)
                assert_opens_as(right, content)

    @pytest.mark.parametrize("subsampling", ["444", "422", "420"])
    @pytest.mark.parametrize("marker", ["JFIF", "Adobe", None])
    def test_jpeg(self, subsampling, marker):
        code = imagecodecs.jpeg8_encode(self.RGB, level=95, subsampling=subsampling)
        right = imagecodecs.jpeg8_decode(code)
        if marker != "JFIF":
            place = code.find(b"\xff\xe0")
            code = code[:place] + code[place + 2 + code[place + 3] :]
        if marker == "Adobe":
            code = code[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1" + code[2:]
        for photometric in ("YBR_FULL_422", "YBR_FULL"):
            content = dicom(
                self.RGB,
                photometric=photometric,
                syntax=uid.JPEGBaseline8Bit,
                encode=lambda frame: self.even(code),
            )
            assert_opens_as(right, content)

    def test_jpeg_of_rgb(self):
        code = imagecodecs.jpeg8_encode(self.RGB, level=95, colorspace="RGB", outcolorspace="RGB")
        right = imagecodecs.jpeg8_decode(code)
        place = code.find(b"\xff\xee")
        bare = code[:place] + code[place + 2 + code[place + 3] :]
        for stored in (code, bare):
            content = dicom(
                self.RGB,
                photometric="RGB",
                syntax=uid.JPEGBaseline8Bit,
                encode=lambda frame, stored=stored: self.even(stored),
            )
            assert_opens_as(right, content)

    def test_jpeg_of_12_bits(self):
        twelve = noise((16, 9), 12)
        code = imagecodecs.jpeg_encode(twelve.astype(np.uint16), level=95, bitspersample=12)
        content = dicom(
            *(twelve, 16, 12),
            syntax=uid.JPEGExtended12Bit,
            encode=lambda frame: self.even(code),
        )
        assert_opens_as(scaled(imagecodecs.jpeg_decode(code)), content)
        cut = dicom(
            *(twelve, 16, 12),
            syntax=uid.JPEGExtended12Bit,
            encode=lambda frame: self.even(code[:-40]),
        )
        with pytest.raises(ValueError, match="the end of the JPEG is missing"):
            open_image(cut)

    @pytest.mark.parametrize("syntax", [NATIVE[1], BIG], ids=lambda syntax: syntax.name)
    @pytest.mark.parametrize(
        ("count", "first", "bits", "size"),
        [
            *((256, 0, 8, 1), (255, 0, 8, 1), (17, 5, 8, 1), (301, 60000, 8, 1)),
            *((256, 0, 8, 2), (256, 0, 16, 2), (17, 5, 16, 2), (256, 0, 12, 2)),
            *((4096, 0, 16, 2), (65536, 0, 16, 2), (300, -100, 16, 2)),
        ],
    )
    def test_palettes(self, count, first, bits, size, syntax):
        signed, allocated = first < 0, 8 if count <= 256 else 16
        low, high = limits(allocated, signed)
        rng = np.random.default_rng(0)
        index = rng.integers(max(first - 5, low), min(first + count + 5, high + 1), (9, 7))
        tables = noise((3, count), bits)
        order = ">" if syntax == BIG else "<"
        said = {}
        for name, entries in zip(("Red", "Green", "Blue"), tables, strict=True):
            if size == 2:
                data = entries.astype(f"{order}u2").tobytes()
            else:  # two entries make a word, the first in its low bits
                data = entries.astype(np.uint8).tobytes() + b"\0" * (count % 2)
                data = np.frombuffer(data, "<u2").astype(f"{order}u2").tobytes()
            said[f"{name}PaletteColorLookupTableDescriptor"] = [count % 65536, first, bits]
            said[f"{name}PaletteColorLookupTableData"] = data
        content = dicom(
            *(index, allocated, allocated),
            signed=signed,
            photometric="PALETTE COLOR",
            syntax=syntax,
            **said,
        )
        colours = np.stack([looked_up(index, first, entries) for entries in tables], axis=-1)
        assert_opens_as(scaled(colours, 0, (1 << bits) - 1), content)


# PNG, JPEG, JPEG-LS, JPEG 2000 and NIfTI ---------------------------------------------------------

PASSES = (  # of an interlaced PNG: first row and column, and steps
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)),
    *((0, 1, 2, 2), (1, 0, 2, 1)),
)
PNG_KINDS = (  # bits, colour type and channels
    *((bits, 0, 1) for bits in (1, 2, 4, 8, 16)),
    *((bits, 3, 1) for bits in (1, 2, 4, 8)),
    *((bits, kind, channels) for bits in (8, 16) for kind, channels in ((2, 3), (4, 2), (6, 4))),
)


def png(pixels, bits, colour_type, *, interlaced, before=()):
    def chunk(name, data):
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    def rows(part):
        places = np.arange(bits)[::-1]
        lines = part.reshape(len(part), -1, 1) >> places & 1
        packed = np.packbits(lines.astype(np.uint8).reshape(len(part), -1), axis=1)
        return b"".join(b"\0" + line.tobytes() for line in packed)

    parts = [pixels[top::down, left::right] for top, left, down, right in PASSES]
    data = b"".join(rows(part) for part in parts if part.size) if interlaced else rows(pixels)
    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], bits, colour_type, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("bits", "colour_type", "channels"), PNG_KINDS)
def test_png(bits, colour_type, channels, interlaced):
    for height, width in ((8, 6), (7, 5), (1, 9), (3, 2)):
        pixels = noise((height, width, channels), bits)
        colours = pixels[..., :-1] if channels in (2, 4) else pixels
        table = noise((256, 3), seed=2).astype(np.uint8)[: 1 << bits]
        if colour_type == 3:
            before, expected = [(b"PLTE", table.tobytes())], table[pixels[..., 0]]
        elif bits == 16:
            alpha = scaled(pixels[..., colours.shape[-1] :], 0, 65535)
            before, expected = [], np.concatenate([scaled(colours), alpha], axis=-1)
        else:
            before, expected = [], scaled(pixels, *limits(bits, False))
        expected = expected[..., 0] if expected.shape[-1] == 1 else expected
        content = png(pixels, bits, colour_type, interlaced=interlaced, before=before)
        assert_opens_as(expected, content)
        if colour_type in (0, 2, 3):
            hidden = bytes(2) if colour_type == 3 else pixels[0, 0].astype(">u2").tobytes()
            before = [*before, (b"tRNS", hidden)]
            content = png(pixels, bits, colour_type, interlaced=interlaced, before=before)
            assert_opens_as(expected, content, "with tRNS")


class TestJpeg:
    RGB = noise((17, 15, 3)).astype(np.uint8)

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    @pytest.mark.parametrize(
        "options",
        [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"optimize": True}],
        ids=str,
    )
    def test_eight_bits(self, mode, options):
        buffer = io.BytesIO()
        Image.fromarray(self.RGB).convert(mode).save(buffer, "JPEG", **options)
        assert_opens_as(imagecodecs.jpeg8_decode(buffer.getvalue()), buffer.getvalue())

    @pytest.mark.parametrize("stored", ["CMYK", "YCCK"])
    def test_inks_of_adobe(self, stored):
        inks = noise((17, 15, 4)).astype(np.uint8)
        content = imagecodecs.jpeg8_encode(inks, level=100, colorspace="CMYK", outcolorspace=stored)
        assert b"Adobe" in content
        light = imagecodecs.jpeg8_decode(content, outcolorspace="CMYK").astype(int)  # inverted
        opened = np.asarray(open_image(content)).astype(int)
        assert np.abs(opened - light[..., :3] * light[..., 3:] / 255).max() <= 1

    @pytest.mark.parametrize("channels", [1, 3])
    def test_12_bits(self, channels):
        pixels = noise((17, 15, channels), 12).astype(np.uint16)
        pixels = pixels[..., 0] if channels == 1 else pixels
        content = imagecodecs.jpeg_encode(pixels, level=95, bitspersample=12)
        assert_opens_as(scaled(imagecodecs.jpeg_decode(content)), content)
        with pytest.raises(ValueError, match="the end of the JPEG is missing"):
            open_image(content[:-40])

    @pytest.mark.parametrize("bits", range(8, 17))
    def test_lossless(self, bits):
        pixels = noise((9, 7), bits)
        words = pixels.astype(np.uint8 if bits == 8 else np.uint16)
        expected = pixels if bits == 8 else scaled(pixels)
        assert_opens_as(expected, imagecodecs.ljpeg_encode(words, bitspersample=bits))
        assert_opens_as(expected, imagecodecs.jpegls_encode(words))

    def test_colours_of_jpeg_ls(self):
        assert_opens_as(self.RGB, imagecodecs.jpegls_encode(self.RGB))
        deep = noise((9, 7, 3), 16)
        assert_opens_as(scaled(deep), imagecodecs.jpegls_encode(deep.astype(np.uint16)))
        with pytest.raises(ValueError, match="8-bit JPEG of 4 channels cannot be read: save it"):
            open_image(imagecodecs.jpegls_encode(noise((9, 7, 4)).astype(np.uint8)))


@pytest.mark.parametrize("bits", [4, 8, 9, 12, 16, 20, 24, 28])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_2000(bits, signed, channels):
    pixels = noise((9, 7, channels), bits, signed)
    pixels = pixels[..., 0] if channels == 1 else pixels
    size = 1 if bits <= 8 else 2 if bits <= 16 else 4
    content = imagecodecs.jpeg2k_encode(
        pixels.astype(f"{'i' if signed else 'u'}{size}"),
        level=0,
        reversible=True,
        bitspersample=bits,
    )
    if bits > 24:
        with pytest.raises(ValueError, match=r"2\d bits cannot be read exactly: save it"):
            open_image(content)
        return
    whole = limits(bits, signed) if bits <= 8 and not signed else ()
    assert_opens_as(scaled(pixels, *whole), content)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "f2"])
def test_nifti(dtype, order):
    dtype = np.dtype(dtype)
    kinds = ((nibabel.Nifti1Header, 352), (nibabel.Nifti2Header, 544))
    shapes, scalings = ((5, 7), (5, 7, 3), (5, 7, 3, 2)), ((1, 0), (2.5, -7), (-1, 5))
    for (kind, start), shape, (slope, shift) in itertools.product(kinds, shapes, scalings):
        volume = tiff_pixels(shape, dtype)
        header = kind()
        header.set_data_dtype(dtype)
        header.set_data_shape(shape)
        header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, shift, start
        header = header.as_byteswapped(order)
        data = volume.astype(dtype.newbyteorder(order)).tobytes(order="F")
        content = header.binaryblock.ljust(start, b"\0") + data
        frame = int(np.prod(shape[2:])) - 1
        values = volume.reshape(5, 7, -1, order="F")[..., frame].T.astype(np.longdouble)
        if dtype == np.uint8 and slope == 1:
            expected = values
        else:
            expected = scaled(values * slope + shift)
        assert_opens_as(expected, content, f"{kind.__name__} {shape} {slope}", frame=frame)
