"""DICOM files, written and windowed by pydicom, and what becomes of them."""

import io
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from medmamba_jax.data.images.decoding import open_image, parsed
from medmamba_jax.data.images.dicom import mixed_windows
from medmamba_jax.data.inspection.image_kinds import image_kind
from medmamba_jax.errors import DataUnavailableError

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_windowing  # noqa: E402
from pydicom.uid import (  # noqa: E402
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MediaStorageDirectoryStorage,
    generate_uid,
)

CT = np.arange(-1024, 3072, dtype=np.int16).reshape(64, 64)
EIGHT = np.random.default_rng(0).integers(0, 256, (6, 7), dtype=np.uint8)


def dataset(pixels, photometric="MONOCHROME2", **attributes):
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.SOPClassUID = CTImageStorage
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
    colour = photometric in ("RGB", "YBR_FULL")
    *frames, header.Rows, header.Columns = pixels.shape[:-1] if colour else pixels.shape
    if frames:
        header.NumberOfFrames = frames[0]
    header.SamplesPerPixel = 3 if colour else 1
    if colour:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation = photometric
    header.BitsAllocated = 8 * pixels.dtype.itemsize
    header.BitsStored = attributes.pop("BitsStored", header.BitsAllocated)
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()
    if len(header.PixelData) % 2:
        header.PixelData += b"\0"
    for name, value in attributes.items():
        setattr(header, name, value)
    return header


def content(header):
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels, photometric="MONOCHROME2", **attributes):
    return content(dataset(pixels, photometric, **attributes))


def scaled(values, low, high):
    """0..255 without rounding."""
    return np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255


def assert_rounds(actual, exact):
    actual = np.asarray(actual)
    assert actual.dtype == np.uint8
    np.testing.assert_allclose(actual, exact, atol=0.5 + 1e-6)


class TestWindows:
    @pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
    @pytest.mark.parametrize(("center", "width"), [(40, 400), (-600.5, 1500), (50, 1), (50, 2)])
    def test_the_file_s_window_is_that_of_pydicom(self, function, center, width):
        header = dataset(CT, WindowCenter=center, WindowWidth=width)
        header.RescaleSlope, header.RescaleIntercept = 1, 0
        if function:
            header.VOILUTFunction = function
        with np.errstate(over="ignore"):  # its sigmoid
            reference = apply_windowing(apply_modality_lut(CT, header), header)
        # pydicom keeps the range of the stored bits.
        assert_rounds(open_image(content(header)), scaled(reference, -(2**15), 2**15 - 1))

    def test_the_first_of_several_windows(self):
        both = dicom(CT, WindowCenter=[40, -600], WindowWidth=[400, 1500])
        first = dicom(CT, WindowCenter=40, WindowWidth=400)
        assert open_image(both) == open_image(first)

    def test_rescaling_comes_first(self):
        stored = (CT + 1024).astype(np.uint16)
        hounsfield = dicom(
            stored, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400
        )
        direct = dicom((2 * stored - 1024.0).astype(np.int16), WindowCenter=40, WindowWidth=400)
        assert open_image(hounsfield) == open_image(direct)
        assert_rounds(
            open_image(hounsfield, window=(-160.0, 240.0)), scaled(2.0 * stored - 1024, -160, 240)
        )

    def test_without_a_window_the_image_s_own_range(self):
        opened = np.asarray(open_image(dicom(CT)))
        assert len(np.unique(opened)) == 256
        assert_rounds(opened, scaled(CT, -1024, 3071))

    def test_the_config_s_window_comes_before_the_file_s(self):
        image = dicom(CT, WindowCenter=40, WindowWidth=400)
        assert_rounds(open_image(image, window=(0.0, 1000.0)), scaled(CT, 0, 1000))

    def test_full_is_what_the_stored_bits_can_hold(self):
        twelve = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
        image = dicom(twelve, BitsStored=12, RescaleSlope=-2, RescaleIntercept=5)
        assert_rounds(open_image(image, window="full"), scaled(5 - 2.0 * twelve, 5 - 2 * 4095, 5))

    def test_a_window_of_no_width_is_refused(self):
        with pytest.raises(ValueError, match=r"width 0 .*: set data\.window"):
            open_image(dicom(CT, WindowCenter=40, WindowWidth=0))

    def test_a_window_of_an_unknown_function_is_refused(self):
        image = dicom(CT, WindowCenter=40, WindowWidth=80, VOILUTFunction="GAMMA")
        with pytest.raises(ValueError, match=r"function GAMMA: set data\.window"):
            open_image(image)
        open_image(image, window=(0.0, 80.0))

    def test_enhanced_files_say_it_by_frame(self):
        header = dataset(np.stack([CT, CT]))
        frames = []
        for center, slope in ((40, 1), (400, 3)):
            rescale, voi, frame = Dataset(), Dataset(), Dataset()
            rescale.RescaleSlope, rescale.RescaleIntercept = slope, 0
            voi.WindowCenter, voi.WindowWidth = center, 400
            frame.PixelValueTransformationSequence = [rescale]
            frame.FrameVOILUTSequence = [voi]
            frames.append(frame)
        header.PerFrameFunctionalGroupsSequence = frames
        for frame, (center, slope) in enumerate(((40, 1), (400, 3))):
            alone = dicom(
                CT, WindowCenter=center, WindowWidth=400, RescaleSlope=slope, RescaleIntercept=0
            )
            assert open_image(content(header), frame=frame) == open_image(alone)


class TestPadding:
    """A native image from 100 to 1099 in a frame of padding, which the range must leave out."""

    @staticmethod
    def padded(dtype, *values):
        pixels = np.arange(100, 1124, dtype=dtype).reshape(32, 32)
        pixels.flat[: 3 * len(values)] = np.repeat(values, 3)
        return pixels, int(pixels.flat[3 * len(values)]), 1123

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    @pytest.mark.parametrize(
        ("dtype", "stored", "limits", "bits"),
        [
            (np.int16, [-2000], [-2000], 16),
            (np.uint16, [65535], [65535], 16),
            (np.uint16, [4095], [4095], 12),
            (np.int16, [-2000], [-2000], 12),
            (np.uint16, [0, 7, 20], [0, 20], 16),
            (np.uint16, [3000, 4095], [4095, 3000], 12),  # as in MONOCHROME1
            (np.int16, [-2000, -1500], [-2000, -1200], 16),
        ],
    )
    @pytest.mark.parametrize("slope", [None, 2, -1.5])
    def test_it_is_compared_with_stored_values_and_left_out(
        self, dtype, stored, limits, bits, photometric, slope
    ):
        pixels, low, high = self.padded(dtype, *stored)
        header = dataset(pixels, photometric, BitsStored=bits)
        header.PixelPaddingValue = limits[0]
        if len(limits) > 1:
            header.PixelPaddingRangeLimit = limits[1]
        values, ends = pixels.astype(float), [low, high]
        if slope:
            header.RescaleSlope, header.RescaleIntercept = slope, -1024
            values, ends = values * slope - 1024, sorted(end * slope - 1024 for end in ends)
        exact = scaled(values, *ends)
        exact = 255 - exact if photometric == "MONOCHROME1" else exact
        assert_rounds(open_image(content(header)), exact)

    @pytest.mark.parametrize(("vr", "value"), [("US", 63536), ("SS", -2000)])
    def test_a_negative_value_that_is_written_as_unsigned(self, vr, value):
        pixels, low, high = self.padded(np.int16, -2000)
        header = dataset(pixels)
        header.add_new("PixelPaddingValue", vr, value)
        assert_rounds(open_image(content(header)), scaled(pixels, low, high))

    def test_bits_that_are_not_stored_do_not_count(self):
        pixels, low, high = self.padded(np.uint16, 65535)
        header = dataset(pixels, BitsStored=12)
        header.PixelPaddingValue = 65535
        assert_rounds(open_image(content(header)), scaled(pixels, low, high))

    def test_floating_point_padding_has_its_own_name(self):
        pixels, low, high = self.padded(np.float32, -1e6)
        header = dataset(pixels)
        header.FloatPixelData = header.pop("PixelData").value
        del header.BitsStored, header.HighBit, header.PixelRepresentation
        header.FloatPixelPaddingValue = -1e6
        assert_rounds(open_image(content(header)), scaled(pixels, low, high))

    def test_other_windows_and_8_bits_do_not_change(self):
        pixels, _, _ = self.padded(np.int16, -2000)
        own = {"WindowCenter": 500, "WindowWidth": 300}
        for window, attributes in (("auto", own), ("full", {}), ((0.0, 500.0), {})):
            said = dicom(pixels, PixelPaddingValue=-2000, **attributes)
            assert open_image(said, window=window) == open_image(
                dicom(pixels, **attributes), window=window
            )
        np.testing.assert_array_equal(open_image(dicom(EIGHT, PixelPaddingValue=0)), EIGHT)

    def test_an_image_of_padding_alone_is_black(self):
        nothing = np.full((4, 4), -2000, np.int16)
        assert not np.asarray(open_image(dicom(nothing, PixelPaddingValue=-2000))).any()


class TestMonochrome:
    @pytest.mark.parametrize("window", ["auto", "full", (0.0, 500.0)])
    @pytest.mark.parametrize(
        "attributes", [{}, {"WindowCenter": 40, "WindowWidth": 400}, {"RescaleSlope": 2}]
    )
    def test_1_is_2_turned_round_after_the_window(self, window, attributes):
        if "RescaleSlope" in attributes:
            attributes = attributes | {"RescaleIntercept": 7}
        one = open_image(dicom(CT, "MONOCHROME1", **attributes), window=window)
        two = open_image(dicom(CT, "MONOCHROME2", **attributes), window=window)
        np.testing.assert_array_equal(np.asarray(one), 255 - np.asarray(two))

    def test_the_same_picture_in_both_gives_the_same_array(self):
        values = np.random.default_rng(0).integers(0, 4096, (8, 9), dtype=np.uint16)
        one = dicom((4095 - values).astype(np.uint16), "MONOCHROME1", BitsStored=12)
        two = dicom(values, "MONOCHROME2", BitsStored=12)
        np.testing.assert_allclose(
            np.asarray(open_image(one, window="full")).astype(int),
            np.asarray(open_image(two, window="full")).astype(int),
            atol=0,
        )

    def test_eight_bits_without_a_window_are_not_touched(self):
        np.testing.assert_array_equal(open_image(dicom(EIGHT)), EIGHT)
        np.testing.assert_array_equal(
            open_image(dicom(EIGHT, RescaleSlope=1, RescaleIntercept=0)), EIGHT
        )
        np.testing.assert_array_equal(open_image(dicom(EIGHT, "MONOCHROME1")), 255 - EIGHT)

    @pytest.mark.parametrize("bits", [1, 6])
    def test_fewer_than_eight_bits_are_brought_to_eight(self, bits):
        few = EIGHT >> (8 - bits)
        few[0, :2] = 0, 2**bits - 1
        for window in ("auto", "full"):
            image = dicom(few, BitsStored=bits)
            assert_rounds(open_image(image, window=window), scaled(few, 0, 2**bits - 1))

    def test_eight_bits_follow_a_window(self):
        assert_rounds(open_image(dicom(EIGHT), window=(50.0, 150.0)), scaled(EIGHT, 50, 150))


class TestColour:
    PIXELS = np.random.default_rng(1).integers(0, 256, (8, 6, 3), dtype=np.uint8)

    def test_8_bit_rgb_is_taken_as_it_is(self):
        opened = open_image(dicom(self.PIXELS, "RGB"), window=(10.0, 20.0))
        np.testing.assert_array_equal(opened, self.PIXELS)

    def test_ybr_becomes_rgb(self):
        from PIL import Image

        ybr = np.asarray(Image.fromarray(self.PIXELS).convert("YCbCr"))
        opened = np.asarray(open_image(dicom(ybr, "YBR_FULL"))).astype(int)
        np.testing.assert_allclose(opened, self.PIXELS, atol=3)

    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    def test_a_palette_is_looked_up(self, syntax):
        table = np.random.default_rng(2).integers(0, 256, (3, 256), dtype=np.uint8)
        header = dataset(EIGHT, "PALETTE COLOR")
        header.file_meta.TransferSyntaxUID = syntax
        for name, row in zip(("Red", "Green", "Blue"), table, strict=True):
            setattr(header, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
            setattr(header, f"{name}PaletteColorLookupTableData", row.tobytes())
        opened = open_image(content(header))
        np.testing.assert_array_equal(opened, np.moveaxis(table[:, EIGHT], 0, -1))

    def test_more_bits_are_refused(self):
        deep = self.PIXELS.astype(np.uint16)
        with pytest.raises(ValueError, match="8-bit colour DICOM can be read; got uint16"):
            open_image(dicom(deep, "RGB"))

    def test_compressed_pixels(self):
        from PIL import Image

        buffer = io.BytesIO()
        smooth = np.mgrid[:16, :16].sum(0).astype(np.uint8) * 8
        Image.fromarray(smooth).save(buffer, "JPEG", quality=100)
        header = dataset(smooth)
        header.PixelData = encapsulate([buffer.getvalue()])
        header["PixelData"].VR = "OB"
        header["PixelData"].is_undefined_length = True
        header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        opened = np.asarray(open_image(content(header))).astype(int)
        np.testing.assert_allclose(opened, smooth, atol=3)


class TestFrames:
    STACK = np.random.default_rng(3).integers(0, 256, (3, 6, 8), dtype=np.uint8)

    def test_each_can_be_had_and_the_first_is_the_default(self):
        image = dicom(self.STACK)
        assert parsed(image).count_frames() == 3
        np.testing.assert_array_equal(open_image(image), self.STACK[0])
        np.testing.assert_array_equal(open_image(image, frame=2), self.STACK[2])
        with pytest.raises(ValueError, match=r"frame 3 was asked for .*there are 3"):
            open_image(image, frame=3)

    def test_a_parsed_file_gives_each_frame_its_own_settings_in_any_order(self):
        header = dataset(np.stack([CT] * 3))
        frames = [Dataset() for _ in range(3)]
        for frame, slope in zip(frames, (1, 3), strict=False):  # the last says nothing
            rescale = Dataset()
            rescale.RescaleSlope, rescale.RescaleIntercept = slope, 0
            frame.PixelValueTransformationSequence = [rescale]
        header.PerFrameFunctionalGroupsSequence = frames
        image = parsed(content(header))
        for frame, slope in ((1, 3), (0, 1), (2, 1), (1, 3)):
            opened = open_image(image, frame=frame, window=(0.0, 5000.0))
            assert_rounds(opened, scaled(slope * CT.astype(float), 0, 5000))

    def test_threads_may_share_a_parsed_file(self):
        stack = np.random.default_rng(4).integers(0, 256, (40, 16, 16), dtype=np.uint8)
        image = parsed(dicom(stack))
        with ThreadPoolExecutor(8) as pool:
            opened = list(pool.map(lambda i: np.asarray(open_image(image, frame=i)), range(40)))
        np.testing.assert_array_equal(opened, stack)

    def test_one_frame(self):
        assert parsed(dicom(EIGHT)).count_frames() == 1
        with pytest.raises(ValueError, match="there are 1"):
            open_image(dicom(EIGHT), frame=1)


class TestFilesWithAndWithoutAWindow:
    @staticmethod
    def by_frame(*windows):
        """Frames whose own windows are these; of None nothing is said."""
        rng = np.random.default_rng(len(windows))
        header = dataset(np.stack([rng.permuted(CT) for _ in windows]))
        header.PerFrameFunctionalGroupsSequence = [Dataset() for _ in windows]
        for groups, center in zip(header.PerFrameFunctionalGroupsSequence, windows, strict=True):
            if center is not None:
                voi = Dataset()
                voi.WindowCenter, voi.WindowWidth = center, 400
                groups.FrameVOILUTSequence = [voi]
        return content(header)

    def test_are_told_apart_frame_by_frame(self):
        some = parsed(self.by_frame(40, None))
        assert some.has_window(0) and not some.has_window(1)
        assert not parsed(dicom(np.stack([CT, CT.T]))).has_window(1)

    def test_inspect_parses_a_file_once(self, monkeypatch):
        reads = []
        read = pydicom.dcmread
        monkeypatch.setattr(pydicom, "dcmread", lambda *a, **b: reads.append(1) or read(*a, **b))
        image_kind(dicom(CT))
        assert len(reads) == 1

    def test_inspect_names_a_file_that_does_not_say_its_depth(self):
        header = dataset(CT)
        del header.BitsStored
        assert image_kind(content(header)) == "DICOM, MONOCHROME2 without a window"

    def test_inspect_tells_them_apart(self):
        assert image_kind(dicom(CT)) == "DICOM, 16-bit MONOCHROME2 without a window"
        said = dicom(CT, "MONOCHROME1", WindowCenter=40, WindowWidth=400)
        assert image_kind(said) == "DICOM, 16-bit MONOCHROME1 with a window"
        assert image_kind(dicom(TestColour.PIXELS, "RGB")) == "DICOM, 8-bit RGB"
        assert image_kind(said[:140]) == "DICOM, damaged"

    def test_a_mixture_of_both_is_a_warning(self):
        bare, said = dicom(CT), dicom(CT, WindowCenter=40, WindowWidth=400)
        colour = dicom(TestColour.PIXELS, "RGB")
        text = mixed_windows(Counter(map(image_kind, [bare, said, colour, bare, said, bare])))
        assert "3 of 5 grey DICOM files have no window" in text
        assert "data.window=LOW,HIGH" in text
        for alike in ([bare, bare, colour], [said, said, colour], [colour]):
            assert mixed_windows(Counter(map(image_kind, alike))) is None


class TestDamage:
    @pytest.mark.parametrize("length", [132, 200, 400, -10])
    def test_half_a_file_is_refused(self, length):
        with pytest.raises(ValueError, match="not a DICOM image that pydicom can read"):
            open_image(dicom(CT)[:length])

    @pytest.mark.parametrize(
        "settings",
        [
            {"RescaleSlope": None, "RescaleIntercept": None},
            {"ModalityLUTSequence": [Dataset()]},
            {"WindowCenter": [None, 1], "WindowWidth": [1, 2]},
        ],
    )
    def test_settings_that_say_nothing_are_refused(self, settings):
        with pytest.raises(ValueError, match="not a DICOM image that pydicom can read"):
            open_image(dicom(CT, **settings))

    def test_a_file_without_pixels_is_refused(self):
        header = dataset(CT)
        del header.PixelData
        with pytest.raises(ValueError, match="not a DICOM image that pydicom can read"):
            open_image(content(header))

    @pytest.mark.parametrize(
        ("kind", "uid"),
        [
            ("a DICOMDIR, which lists other files", MediaStorageDirectoryStorage),
            ("a DICOM object without pixels (Basic Text SR Storage)", BasicTextSRStorage),
        ],
    )
    def test_what_is_no_image_is_named(self, kind, uid):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = uid
        header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if uid == MediaStorageDirectoryStorage:
            header.DirectoryRecordSequence = [Dataset()]
        else:
            header.SOPClassUID, header.PatientID = uid, "p1"
        assert image_kind(content(header)) == kind
        with pytest.raises(ValueError, match=re.escape(f"{kind}: take it out")):
            open_image(content(header))

    def test_without_pydicom_the_remedy_is_named(self, monkeypatch):
        image = dicom(CT)
        monkeypatch.setitem(sys.modules, "pydicom", None)
        for use in (open_image, parsed):
            with pytest.raises(
                DataUnavailableError,
                match=r"pydicom.*medmamba-jax\[formats\]",
            ):
                use(image)
