"""Reads DICOM files as 8-bit pixels, by pydicom and the decoders of the extra `formats`."""

import io
import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import special

from medmamba_jax.data.images.decoders import decoder
from medmamba_jax.data.images.image_file import (
    ImageFile,
    Range,
    explained_damage,
    integer_range,
    require_modest,
    require_size,
)
from medmamba_jax.data.images.windowing import Window, to_uint8
from medmamba_jax.errors import UserError

_GREY = ("MONOCHROME1", "MONOCHROME2")
# The colours that pydicom converts to RGB. Those of JPEG 2000 are its own.
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422")
_JPEG2000_COLOUR = ("YBR_ICT", "YBR_RCT")
_PIXEL_GROUP = 0x0028  # of tags that describe pixels
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PART = 1 << 24  # bytes that are decompressed at once
_WITH, _WITHOUT = " with a window", " without a window"  # how kinds of grey files end


class _Table(NamedTuple):
    """A lookup table: of a palette, of the modality (Modality LUT), or of interest (VOI LUT).

    Attributes:
        first: the value that the first entry stands for. Smaller values get that entry, too.
        entries: what consecutive values become (n,).
        bits: how many bits an entry can have.
    """

    first: int
    entries: np.ndarray
    bits: int

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Returns the entries for these values, of the same shape."""
        places = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(places, 0, len(self.entries) - 1)]

    def in_8_bits(self, values: np.ndarray) -> np.ndarray:
        """Looks values up and scales the whole range of an entry to 0..255."""
        if not 8 <= self.bits <= 16 or self.entries.max() >> self.bits:
            raise UserError(
                f"a lookup table announces {self.bits} bits and has an entry of"
                f" {self.entries.max()}: convert the file, or set data.window to LOW,HIGH"
            )
        return to_uint8(self.look_up(values), integer_range(self.bits))


class DicomFile(ImageFile):
    """A DICOM file, whose frames become 8-bit pixels by the rules of DICOM.

    It applies the modality's transformation first (Modality LUT, or RescaleSlope and
    RescaleIntercept, of which either may be missing), then the window, and then inverts
    MONOCHROME1, whose smallest values are white. The file may give each frame its own settings for
    these steps. 8-bit colour does not change.

    The window "auto" is the file's first window (WindowCenter, WindowWidth, VOILUTFunction; PS3.3,
    C.11.2.1), or if it has none, its first table of values of interest (VOI LUT). Without both it
    is the frame's own range without padding (PixelPaddingValue, PixelPaddingRangeLimit; PS3.3,
    C.7.5.1.1.2), which becomes 0 or 255; but 8-bit pixels that the modality's transformation leaves
    unchanged do not change at all. "full" is what the stored bits can become. (low, high) is in the
    modality's units, such as Hounsfield.
    """

    expected = "a DICOM image that pydicom can read"

    def __init__(self, content: bytes):
        super().__init__(content)
        self._pydicom = decoder("pydicom", "a DICOM file")
        with explained_damage(self.expected):
            self._header = _read_header(content, self._pydicom)
            implicit, self._little = self._header.original_encoding
            self._syntax = self._header.file_meta.get("TransferSyntaxUID")
            if self._syntax is None:  # a file without the preamble and the header after it
                uid = self._pydicom.uid
                explicit = uid.ExplicitVRLittleEndian if self._little else uid.ExplicitVRBigEndian
                self._syntax = uid.ImplicitVRLittleEndian if implicit else explicit

    def _read(self, window: Window, frame: int, max_pixels: int) -> Image.Image:
        if without_pixels := self._without_pixels():
            raise ValueError(f"{without_pixels}: take it out (data.exclude)")
        header = self._header_of_frame(frame)
        require_size(header.Rows, header.Columns, max_pixels)
        colours = header.PhotometricInterpretation
        pixels = self._stored(header, frame)
        if colours in _GREY:
            pixels = self._grey(pixels, header, window)
            pixels = 255 - pixels if colours == "MONOCHROME1" else pixels
        elif colours == "PALETTE COLOR":
            pixels = self._coloured(pixels, header)
        return Image.fromarray(pixels)

    def _frames(self) -> int:
        frames = int(self._header.get("NumberOfFrames") or 1)
        if frames > 8 * len(self.content):  # each has a bit or more
            raise UserError(
                f"it announces {frames} frames, more than its {len(self.content)} bytes can hold"
            )
        return frames

    def has_window(self, frame: int) -> bool:
        """Whether the file contains a window, or a table in its place, for a frame."""
        header = self._header_of_frame(frame)
        return _file_window(header) is not None or bool(header.get("VOILUTSequence"))

    def _without_pixels(self) -> str:
        """Returns what an intact file without pixels is; "" if it has some, or does not say."""
        uid = self._header.file_meta.get("MediaStorageSOPClassUID") or self._header.get(
            "SOPClassUID"
        )
        if uid is None or any(name in self._header for name in _PIXELS):
            return ""
        if "DirectoryRecordSequence" in self._header:
            return "a DICOMDIR, which lists other files"
        return f"a DICOM object without pixels ({uid.name})"

    def _kind(self) -> str:
        if without_pixels := self._without_pixels():
            return without_pixels
        bits, colours = self._header.get("BitsStored"), self._header.PhotometricInterpretation
        depth = "" if bits is None else f"{bits}-bit "
        window = _WITH if self.has_window(0) else _WITHOUT
        return f"DICOM, {depth}{colours}{window if colours in _GREY else ''}"

    def _header_of_frame(self, frame: int) -> Any:
        """Returns the settings of a frame's pixels, under the names that files of one frame use."""
        own = self._header.group_dataset(_PIXEL_GROUP)
        shared = self._header.get("SharedFunctionalGroupsSequence") or []
        of_frames = self._header.get("PerFrameFunctionalGroupsSequence") or []
        for groups in (*shared[:1], *of_frames[frame : frame + 1]):
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for settings in (groups.get(name) or [])[:1]:
                    own.update(settings)
        return own

    def _stored(self, header: Any, frame: int) -> np.ndarray:
        """Decompresses a frame: (h, w) as it is stored, or 8-bit RGB (h, w, 3)."""
        colours = header.PhotometricInterpretation
        jpeg2000 = self._syntax in self._pydicom.uid.JPEG2000TransferSyntaxes
        one_channel = colours in (*_GREY, "PALETTE COLOR")
        if not one_channel and colours not in _COLOUR + _JPEG2000_COLOUR * jpeg2000:
            raise UserError(f"DICOM with colours of the kind {colours} cannot be read: convert it")
        from medmamba_jax.data.images import dicom_codecs  # it needs pydicom

        reader, plugin = dicom_codecs.reader_of(self._syntax)
        bits, highest = header.get("BitsStored"), header.get("HighBit")
        shift = 0 if bits is None or highest is None else highest + 1 - bits
        options = {}
        if shift:
            if reader.is_encapsulated or not 0 <= shift <= header.BitsAllocated - bits:
                raise UserError(
                    f"compressed DICOM with HighBit {highest} and BitsStored {bits} cannot be read:"
                    " convert it"
                )
            options = {"bits_stored": header.BitsAllocated, "pixel_representation": 0}
        stored, _ = reader.as_array(self._header, index=frame, decoding_plugin=plugin, **options)
        if shift:  # the sign is the highest bit
            unused = 8 * stored.itemsize - bits
            stored = (stored >> shift) << unused
            kind = "i" if header.PixelRepresentation else "u"
            stored = stored.view(f"{kind}{stored.itemsize}") >> unused
        if one_channel and stored.ndim != 2:
            raise UserError(f"{colours} DICOM with several channels cannot be read: convert it")
        if not one_channel and (stored.dtype != np.uint8 or bits != 8 or stored.shape[-1] != 3):
            raise UserError(
                f"only grey and 8-bit colour DICOM can be read; got {stored.dtype} {stored.shape}"
                f" {colours} with {bits} bits: convert it"
            )
        return stored

    def _grey(self, stored: np.ndarray, header: Any, window: Window) -> np.ndarray:
        values, full = self._in_units(stored, header)
        if window == "auto":
            if own := _file_window(header):
                return _windowed(values.astype(np.float64), *own)
            if header.get("VOILUTSequence"):
                signed = full is None or full[0] < 0
                return self._table(header.VOILUTSequence[0], "LUT", signed).in_8_bits(values)
            unsigned = header.get("BitsStored") == 8 and not header.get("PixelRepresentation")
            if unsigned and np.array_equal(values, stored):
                return stored.astype(np.uint8)
            padding = _is_padding(stored, header)
            if padding.any() and not padding.all():
                window = float(values[~padding].min()), float(values[~padding].max())
        return to_uint8(values.astype(np.float64), full if full and window == "full" else window)

    def _in_units(self, stored: np.ndarray, header: Any) -> tuple[np.ndarray, Range | None]:
        """Applies the modality's transformation.

        Returns:
            The values in the modality's units (h, w), and the range that stored bits can become;
            None if the file stores floating point numbers.
        """
        full = None
        if stored.dtype.kind != "f":
            full = integer_range(header.BitsStored, signed=bool(header.PixelRepresentation))
        if header.get("ModalityLUTSequence") and full:
            table = self._table(header.ModalityLUTSequence[0], "LUT", full[0] < 0)
            low, high = np.clip(np.array(full) - table.first, 0, len(table.entries) - 1).astype(int)
            reached = table.entries[low : high + 1]
            return table.look_up(stored), (float(reached.min()), float(reached.max()))
        if "RescaleSlope" in header or "RescaleIntercept" in header:
            slope = float(header.get("RescaleSlope", 1))
            intercept = float(header.get("RescaleIntercept", 0))
            if not (slope and math.isfinite(slope) and math.isfinite(intercept)):
                raise UserError(
                    f"DICOM with RescaleSlope {slope:g} and RescaleIntercept {intercept:g} cannot"
                    " be read: correct its header"
                )
            low, high = sorted(end * slope + intercept for end in full or (0, 0))
            return stored.astype(np.float64) * slope + intercept, full and (low, high)
        return stored, full

    def _coloured(self, stored: np.ndarray, header: Any) -> np.ndarray:
        if "RedPaletteColorLookupTableData" not in header:
            raise UserError("DICOM with a palette in segments cannot be read: convert it to RGB")
        signed = bool(header.PixelRepresentation)
        names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
        tables = [self._table(header, name, signed) for name in names]
        return np.stack([table.in_8_bits(stored) for table in tables], axis=-1)

    def _table(self, settings: Any, name: str, signed: bool) -> _Table:
        """Parses a table (DICOM PS3.3, C.7.6.3.1.5 and C.11).

        `name` + "Descriptor" is the number of entries, the first value and the bits of an entry, in
        numbers of 16 bits with or without a sign; `name` + "Data" holds the entries, as bytes or
        numbers. `signed` says whether the table's input can be negative.
        """
        descriptor, data = settings[f"{name}Descriptor"].value, settings[f"{name}Data"].value
        count = (int(descriptor[0]) & 0xFFFF) or 1 << 16
        first, bits = int(descriptor[1]) & 0xFFFF, int(descriptor[2])
        if signed and first >= 1 << 15:
            first -= 1 << 16
        if isinstance(data, bytes):
            words = np.frombuffer(data + b"\0" * (len(data) % 2), "<u2" if self._little else ">u2")
        else:
            words = (np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF).astype("<u2")
        if len(words) < count:  # each word holds two entries of 8 bits, the first in its low bits
            words, bits = words.astype("<u2").view(np.uint8), 8
        if len(words) < count:
            raise UserError(f"a lookup table has {len(words)} entries and announces {count}")
        return _Table(first, words[:count].astype(np.int64), bits)


def mixed_windows(kinds: Mapping[str, int]) -> str | None:
    """Returns a warning if some of the files that are grey DICOM have a window and some have none.

    Args:
        kinds: kind of file, as `ImageFile.kind` names it -> number of files.
    """
    some, none = (
        sum(count for kind, count in kinds.items() if kind.endswith(end))
        for end in (_WITH, _WITHOUT)
    )
    if not some or not none:
        return None
    return (
        f"{none:,} of {some + none:,} grey DICOM files have no window. data.window=auto shows each"
        f" of these over its own range, and the other {some:,} by their windows, so that the same"
        " tissue may get different grey values: set data.window=LOW,HIGH for all"
    )


def header_tag(content: bytes | np.ndarray, tag: str) -> str | None:
    """Returns a value of a DICOM header, without decoding the pixels.

    Args:
        content: the bytes of a file, or an array, which has no tags.
        tag: the tag's keyword, such as "PatientID", or its number, such as "00100020".

    Returns:
        The value as text without spaces around it. None if the file is not DICOM, lacks the tag, or
        leaves it empty.

    Raises:
        DataUnavailableError: the file is DICOM and pydicom is not installed.
        UserError: there is no such tag, or the file is damaged.
    """
    if isinstance(content, np.ndarray) or not is_dicom(content):
        return None
    pydicom = decoder("pydicom", "a DICOM file")
    try:
        number = pydicom.tag.Tag(tag)
    except ValueError as error:
        raise UserError(f"{tag!r} is no tag of DICOM; such as PatientID or 00100020") from error
    with explained_damage(DicomFile.expected):
        header = _read_header(content, pydicom, stop_before_pixels=True, specific_tags=[number])
        value = header[number].value if number in header else None
        return None if value is None else str(value).strip() or None


def _read_header(content: bytes, pydicom: Any, **options: Any) -> Any:
    """Reads a header by `pydicom.dcmread`.

    Raises:
        UserError: the file is deflated, and unpacks to more than `require_modest` allows. `dcmread`
            would unpack all of it.
    """
    deflated = pydicom.uid.DeflatedExplicitVRLittleEndian
    if deflated.encode() in content:
        file = io.BytesIO(content)
        pydicom.filereader.read_preamble(file, force=True)
        syntax = pydicom.filereader._read_file_meta_info(file).get("TransferSyntaxUID")
        if syntax == deflated:
            unpacking, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
            rest = file.read()
            while rest and not unpacking.eof:
                size += len(unpacking.decompress(rest, _PART))
                require_modest(size, "the DICOM file")
                rest = unpacking.unconsumed_tail
    return pydicom.dcmread(io.BytesIO(content), force=True, **options)


def is_dicom(content: bytes) -> bool:
    """Whether a file begins as DICOM files do, with or without their preamble."""
    if content[128:132] == b"DICM":
        return True
    # A file without a preamble begins with the first elements of group 2 or 8. After its tag, an
    # element has the name of its type, such as "UI", or the length of its value in 4 bytes.
    for order in ("little", "big"):
        group, element = (int.from_bytes(content[at : at + 2], order) for at in (0, 2))
        if group in (2, 8) and element <= 0x18 and len(content) > 132:
            return content[4:6] in _FIRST_TYPES or int.from_bytes(content[4:8], "little") <= 128
    return False


_FIRST_TYPES = (b"UL", b"OB", b"UI", b"CS", b"DA", b"TM", b"SH")


def _is_padding(stored: np.ndarray, header: Any) -> np.ndarray:
    """Returns where stored values (h, w), before any transformation, are padding."""
    prefix = {"float32": "Float", "float64": "DoubleFloat"}.get(str(stored.dtype), "")
    ends = [
        value
        for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        if (value := header.get(prefix + name)) is not None
    ]
    if not ends:
        return np.zeros(stored.shape, bool)
    if not prefix:  # a header may hold a negative value as unsigned, or bits that are not stored
        low, _ = integer_range(header.BitsStored, signed=bool(header.PixelRepresentation))
        ends = [(value - int(low)) % (1 << header.BitsStored) + int(low) for value in ends]
    return (stored >= min(ends)) & (stored <= max(ends))


def _file_window(header: Any) -> tuple[float, float, str] | None:
    """Returns the file's first window: center, width and function."""
    if header.get("WindowCenter") is None or header.get("WindowWidth") is None:
        return None
    function = (header.get("VOILUTFunction") or "LINEAR").upper()
    return _first(header.WindowCenter), _first(header.WindowWidth), function


def _windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    if width <= 0 or function not in _FUNCTIONS:
        raise UserError(
            f"the file's window has the width {width:g} and the function {function}: set"
            " data.window to LOW,HIGH"
        )
    if function == "SIGMOID":
        return to_uint8(special.expit(4 * (values - center) / width), (0.0, 1.0))
    if function == "LINEAR_EXACT":
        return to_uint8(values, (center - width / 2, center + width / 2))
    half = max(width - 1, 0) / 2
    return to_uint8(values, (center - 0.5 - half, center - 0.5 + half))


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
