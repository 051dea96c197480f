"""Files that want to do harm, and what becomes of each. SECURITY.md promises what is tested here.

A threat is a function below. It writes files into a folder and returns what a user would do with
them. That is refused with a message that fits its pattern. No code in the files runs, which would
make a file called `ran`, and nothing is written outside of the files' own folder.
"""

import gzip
import io
import json
import os
import pathlib
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import medmamba_jax as mm
from medmamba_jax import cli
from medmamba_jax.data.build import find_images
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.first_pass import first_pass
from medmamba_jax.data.images.decoding import open_image, parsed
from medmamba_jax.data.images.image_file import MAX_PIXELS
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.public.archives import open_files
from medmamba_jax.data.texts import shown_name
from medmamba_jax.errors import DataUnavailableError, UserError
from medmamba_jax.interop import read_weights
from medmamba_jax.runs.description import RunDescription

THREATS = {}
SIDE = 13_000  # a square of it has more pixels than are allowed
NOISE = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)


def threat(pattern):
    def register(function):
        assert function.__name__ not in THREATS
        THREATS[function.__name__] = (function, pattern)
        return function

    return register


def below(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.fixture
def place(tmp_path):
    """A folder that is the only one that files may be written into."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", THREATS)
def test_a_threat_is_refused(name, place, tmp_path):
    make, pattern = THREATS[name]
    use = make(place)
    before = below(tmp_path)
    with pytest.raises((UserError, DataUnavailableError, zipfile.BadZipFile), match=pattern):
        use()
    assert below(tmp_path) == before


# Pickles


class Code:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, place):
        self.path = place / "ran"

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def of_objects(place):
    array = np.empty(2, object)
    array[:] = Code(place)
    return array


def test_the_pickle_would_run(place):
    content = io.BytesIO()
    np.save(content, of_objects(place), allow_pickle=True)
    content.seek(0)
    np.load(content, allow_pickle=True)
    assert (place / "ran").exists()


def npz(place, **changes):
    arrays = {"x": np.zeros((2, 8, 8), np.uint8), "y": np.arange(2), **changes}
    np.savez(place / "a.npz", **arrays)
    return lambda: find_images(DataConfig(path=str(place / "a.npz")))


@threat("not a complete .npy file of numbers")
def pickle_in_an_npy_image(place):
    with (place / "a.npy").open("wb") as file:
        np.save(file, of_objects(place), allow_pickle=True)
    return lambda: open_image((place / "a.npy").read_bytes())


@threat("x is pickled")
def pickled_images_in_an_npz(place):
    return npz(place, x=of_objects(place))


@threat("y is pickled")
def pickled_labels_in_an_npz(place):
    return npz(place, y=of_objects(place))


@threat("class_names is pickled")
def pickled_names_in_an_npz(place):
    return npz(place, class_names=of_objects(place))


@threat("groups is pickled")
def pickled_patients_in_an_npz(place):
    return npz(place, groups=of_objects(place))


def test_a_pickle_among_the_saved_facts_is_made_anew(place):
    images = LabelledImages([NOISE, NOISE.T], [0, 1], ("a", "b"))
    config = DataConfig(image_size=8, cache_dir=str(place / "cache"))
    first_pass(images, config.preprocessing(1), config)
    (path,) = (place / "cache" / "audit").iterdir()
    with path.open("wb") as file:
        np.save(file, of_objects(place), allow_pickle=True)
    assert first_pass(images, config.preprocessing(1), config).facts.readable.all()
    assert not (place / "ran").exists()


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt", ".bin", ".pth.tar"])
@pytest.mark.parametrize("kind", ["pickle", "zip", "nested"])
def test_code_in_a_pytorch_file_is_refused(torch, place, ending, kind):
    path = place / f"weights{ending}"
    if kind == "pickle":
        torch.save({"a": Code(place)}, path, _use_new_zipfile_serialization=False)
    else:
        inside = {"model": {"a": [Code(place)]}} if kind == "nested" else Code(place)
        torch.save(inside, path)
    with pytest.raises(UserError, match="holds Python objects besides tensors"):
        read_weights(path)
    assert not (place / "ran").exists()


# Archives


def zipped(place, *members):
    with zipfile.ZipFile(place / "a.zip", "w") as archive:
        archive.writestr("good.txt", b"good")
        for info, content in members:
            archive.writestr(info, content)

    def use():
        with open_files(place / "a.zip") as files:
            for read in files.values():
                read()

    return use


def special(name, kind):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


@threat("a path outside of its folder, '../out.txt'")
def zip_with_a_path_upwards(place):
    return zipped(place, ("../out.txt", b"out"))


@threat("a path outside of its folder, 'a/../../out.txt'")
def zip_with_a_path_upwards_in_its_middle(place):
    return zipped(place, ("a/../../out.txt", b"out"))


@threat("a path outside of its folder, '/tmp/out.txt'")
def zip_with_an_absolute_path(place):
    return zipped(place, ("/tmp/out.txt", b"out"))


@threat("a path outside of its folder")
def zip_with_a_path_of_windows(place):
    return zipped(place, ("C:\\out.txt", b"out"))


@threat("a link or a device, 'link'")
def zip_with_a_symbolic_link(place):
    return zipped(place, (special("link", stat.S_IFLNK), b"/etc/passwd"))


@threat("a link or a device, 'device'")
def zip_with_a_device(place):
    return zipped(place, (special("device", stat.S_IFCHR), b""))


@threat("a link or a device, 'pipe'")
def zip_with_a_pipe(place):
    return zipped(place, (special("pipe", stat.S_IFIFO), b""))


@threat("good.txt is in it twice")
def zip_with_a_second_file_of_the_same_name(place):
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zipped(place, ("good.txt", b"other"))


@threat("unpacks to 2147483648 bytes, too many for memory")
def zip_bomb(place):
    use = zipped(place, ("bomb", zlib.compress(bytes(10**6))))
    content = bytearray((place / "a.zip").read_bytes())
    entry = content.rindex(b"PK\1\2")  # the directory's entry of the last file
    struct.pack_into("<I", content, entry + 24, 1 << 31)
    (place / "a.zip").write_bytes(content)
    return use


TAR = {
    "upwards": {"name": "../out.txt"},
    "absolute": {"name": "/tmp/out.txt"},
    "symbolic": {"name": "link", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard": {"name": "link", "type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
    "device": {"name": "device", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
}


@pytest.mark.parametrize("kind", TAR)
@pytest.mark.parametrize("ending", [".tar", ".pth.tar", ".png", ".safetensors"])
def test_a_tar_archive_is_never_unpacked(kind, ending, place, tmp_path):
    path = place / f"a{ending}"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo()
        for name, value in TAR[kind].items():
            setattr(info, name, value)
        archive.addfile(info, io.BytesIO(b""))
    before = below(tmp_path)
    for use in (
        lambda: find_images(DataConfig(path=str(path))),
        lambda: read_weights(path),
        lambda: open_image(path.read_bytes()),
    ):
        with pytest.raises((UserError, DataUnavailableError)):
            use()
    assert below(tmp_path) == before


# Links


@pytest.mark.parametrize("what", ["file", "folder", "table"])
def test_a_link_out_of_the_folder_is_named(what, place, tmp_path, caplog):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("secret.png", "other.png"):
        Image.fromarray(NOISE).save(outside / name)
    for name in "ab":
        if what == "folder" and name == "b":
            (place / name).symlink_to(outside)
            continue
        (place / name).mkdir()
        Image.fromarray(NOISE).save(place / name / "0.png")
        (place / name / "inside.png").symlink_to(place / name / "0.png")
    if what != "folder":
        (place / "b" / "1.png").symlink_to(outside / "secret.png")
    path = place
    if what == "table":
        path = place / "t.csv"
        path.write_text("path,label\na/0.png,a\nb/0.png,b\nb/1.png,b\n")
    images = find_images(DataConfig(path=str(path)))
    lines = [record.getMessage() for record in caplog.records]
    found = {"file": (1, 5), "folder": (2, 4), "table": (1, 3)}[what]
    assert len(lines) == 1 and lines[0].startswith(
        f"{found[0]} of the {found[1]} images lie outside of {place}, because links lead there,"
    )
    real = outside / ("other.png" if what == "folder" else "secret.png")
    assert lines[0].endswith(f" to {real}; the program reads them all the same")
    assert all(images.read(row) for row in range(len(images)))


# Bombs


def written(format):
    content = io.BytesIO()
    Image.fromarray(NOISE).save(content, format)
    return bytearray(content.getvalue())


def giant(format, *fields):
    """A file whose header announces a giant image, and which has the pixels of a small one.

    `fields` are the format of each number, its place, and what it is in the small image.
    """
    content = written(format)
    for kind, at, was in fields:
        assert struct.unpack_from(kind, content, at) == (was,)
        struct.pack_into(kind, content, at, SIDE + was - 16)
    return bytes(content)


def png():
    content = bytearray(giant("PNG", (">I", 16, 16), (">I", 20, 16)))
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def jpeg():
    at = written("JPEG").index(b"\xff\xc0")
    return giant("JPEG", (">H", at + 5, 16), (">H", at + 7, 16))


def bmp():
    return giant("BMP", ("<i", 18, 16), ("<i", 22, 16))


def gif():
    at = written("GIF").index(b",\0\0\0\0")
    return giant("GIF", ("<H", 6, 16), ("<H", 8, 16), ("<H", at + 5, 16), ("<H", at + 7, 16))


def tiff():
    content = written("TIFF")
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from("<HH", content, entry)
        if tag in (256, 257, 278):  # width, height, rows of a strip
            struct.pack_into("<I" if kind == 4 else "<H", content, entry + 8, SIDE)
    return bytes(content)


def webp():
    content = io.BytesIO()
    Image.fromarray(NOISE).save(content, "WEBP", lossless=True)
    content = bytearray(content.getvalue())
    at = content.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", content, at)
    struct.pack_into("<I", content, at, bits & ~0xFFFFFFF | (SIDE - 1) << 14 | (SIDE - 1))
    return bytes(content)


def jpeg_2000():
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    content = bytearray(imagecodecs.jpeg2k_encode(NOISE))
    at = content.index(b"\xff\x4f\xff\x51")
    struct.pack_into(">II", content, at + 8, SIDE, SIDE)
    return bytes(content)


def jpeg_ls():
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    content = bytearray(imagecodecs.jpegls_encode(NOISE))
    struct.pack_into(">HH", content, content.index(b"\xff\xf7") + 5, SIDE, SIDE)
    return bytes(content)


def deep_png():
    """A PNG of 16-bit colour."""
    content = bytearray(png())
    content[24:26] = b"\x10\2"
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def dicom(rows=SIDE, columns=SIDE, frames=None, deflated=b""):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    header.Rows, header.Columns = rows, columns
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    if frames:
        header.NumberOfFrames = frames
    header.PixelData = NOISE.tobytes()
    if deflated:
        header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    content = io.BytesIO()
    header.save_as(content, enforce_file_format=True)
    return content.getvalue()


def nifti(shape=(SIDE, SIDE, 1), size=4096):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4) + bytes(size)


GIANTS = {
    "png": png,
    "16-bit colour png": deep_png,
    "jpeg": jpeg,
    "jpeg-ls": jpeg_ls,
    "jpeg 2000": jpeg_2000,
    "bmp": bmp,
    "gif": gif,
    "tiff": tiff,
    "webp": webp,
    "dicom": dicom,
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", GIANTS)
def test_a_giant_is_refused_by_its_header(kind):
    """They have the pixels of a small image, so that decoding would find other damage."""
    refused = rf"too large \({SIDE} x {SIDE} pixels, and data.max_pixels allows {MAX_PIXELS}\)"
    with pytest.raises(UserError, match=refused):
        open_image(GIANTS[kind]())


@pytest.mark.parametrize("kind", [kind for kind in GIANTS if kind != "jpeg"])
def test_a_higher_limit_lets_the_decoder_see_the_damage(kind, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    small = GIANTS[kind]()  # of a JPEG, libjpeg would fill up the pixels that are missing
    with pytest.raises(UserError) as error:  # the memory is asked for, and never touched
        open_image(small, max_pixels=SIDE * SIDE)
    assert "too large" not in str(error.value)


@pytest.mark.parametrize("kind", ["npy", "nifti"])
def test_a_file_that_holds_all_its_pixels_has_the_same_limit(kind):
    content = io.BytesIO()
    np.save(content, NOISE)
    whole = {"npy": content.getvalue(), "nifti": gzip.compress(nifti((16, 16, 1)))}[kind]
    assert open_image(whole, max_pixels=256).size == (16, 16)
    with pytest.raises(UserError, match=r"too large \(16 x 16 pixels"):
        open_image(whole, max_pixels=255)


@threat("announces 2000000000 frames, more than its")
def dicom_of_many_frames(place):
    content = dicom(16, 16, frames=2_000_000_000)
    return lambda: parsed(content).count_frames()


@threat("bytes of pixels, and the file has")
def nifti_of_many_slices(place):
    content = nifti((16, 16, 32000, 32000))
    return lambda: parsed(content).count_frames()


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr("medmamba_jax.data.images.image_file.LARGEST_UNPACKED", 10_000)


def test_a_compressed_nifti_may_not_unpack_to_a_giant(small_limit):
    assert open_image(gzip.compress(nifti((16, 16, 1), size=9_000))).size == (16, 16)
    with pytest.raises(UserError, match="the NIfTI file unpacks to more than 10,000 bytes"):
        open_image(gzip.compress(nifti((16, 16, 1), size=10_000)))


def test_a_deflated_dicom_may_not_unpack_to_a_giant(small_limit):
    content = dicom(16, 16, deflated=True)
    np.testing.assert_array_equal(open_image(content), NOISE)
    packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    meta = content[: 144 + int.from_bytes(content[140:144], "little")]
    bomb = meta + packing.compress(bytes(10_001)) + packing.flush()
    with pytest.raises(UserError, match="the DICOM file unpacks to more than 10,000 bytes"):
        open_image(bomb)
    with pytest.raises(UserError, match="the DICOM file unpacks to more than 10,000 bytes"):
        from medmamba_jax.data.images.dicom import header_tag

        header_tag(bomb, "PatientID")


@threat(r"x is uint8 \(1, 1000000, 1000000\): it has 1,000,000,000,000 bytes, and")
def npz_that_unpacks_to_a_giant(place):
    use = npz(place, y=np.zeros(1, int), x=np.zeros((1, 8, 8), np.uint8))
    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": (1, 10**6, 10**6)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(place / "a.npz", "w") as archive:
        info = zipfile.ZipInfo("x.npy")
        with archive.open(info, "w", force_zip64=True) as file:
            file.write(header.getvalue())
        info.file_size = 2 * 10**12  # what the directory will say
        labels = io.BytesIO()
        np.save(labels, np.zeros(1, int))
        archive.writestr("y.npy", labels.getvalue())
    return use


@threat("not a complete image file")
def png_with_a_text_that_unpacks_to_a_giant(place):
    small = bytes(written("PNG"))
    text = b"k\0\0" + zlib.compress(bytes(1 << 21), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return lambda: open_image(small[:33] + chunk + small[33:])


@threat("a readable .safetensors|begins as no file of weights|damaged")
def safetensors_with_a_giant_header(place):
    path = place / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{" + bytes(100))
    return lambda: read_weights(path)


@threat("is not a readable .safetensors file")
def safetensors_that_announce_giant_tensors(place):
    path = place / "a.safetensors"
    tensor = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    header = json.dumps({"a": tensor}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return lambda: read_weights(path)


@threat("run.json is damaged")
def run_description_of_many_levels(place):
    (place / "run.json").write_text("[" * 200_000)
    return lambda: RunDescription.read(place)


# Names

NASTY = {
    "formula": "=HYPERLINK(1)",
    "at": "@SUM(1)",
    "colour": "a\x1b[31mred",
    "lines": "two\nlines",
    "return": "\rerror: forged",
    "direction": "\u202egnp",
    "html": "<script>alert(1)</script>",
    "byte": "bad\udcff",
    "half": "\ud800",
    "c1": "\x9b31m",
    "separator": "\u2028x",
}
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def unsafe_characters(text):
    return {
        c for c in text if c in DIRECTIONS or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
    } - {"\n", "\t"}


@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_one_line_that_is_safe_to_show(name):
    shown = shown_name(NASTY[name])
    assert not unsafe_characters(shown) and "\n" not in shown and "\t" not in shown
    assert shown_name(shown) == shown
    shown.encode()  # it is Unicode
    images = LabelledImages(
        [NOISE], [0], (NASTY[name], "b"), names=(NASTY[name],), groups=[NASTY[name]]
    )
    assert (images.class_names[0], images.names[0], images.groups[0]) == (shown,) * 3


def test_a_plain_name_stays_as_it_is():
    for name in ("a b", "Größe", "日本語", "x_1.png", "a\\b"):
        assert shown_name(name) == name


def test_the_message_names_a_file_whose_name_is_not_utf8(place):
    for name in (b"a/ok.png", b"b/bad\xff.png"):
        path = os.path.join(os.fsencode(place), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(bytes(written("PNG")) if b"ok" in name else b"no image")
    config = DataConfig(path=str(place), image_size=8, cache_dir=str(place.parent / "c"))
    found = find_images(config)
    problems = first_pass(found, config.preprocessing(1), config).facts.problems
    assert list(problems) == [1] and found.names[1] == "b/bad\\xff.png"


def test_text_in_the_header_of_an_image_is_escaped():
    content = dicom(16, 16)
    changed = content.replace(b"MONOCHROME2", b"\x1b[31m\nRED  ")
    assert len(changed) != len(content) or changed != content
    kind = parsed(changed).kind()
    assert "\\x1b[31m\\nRED" in kind and not unsafe_characters(kind)


@pytest.mark.slow
def test_nothing_that_is_written_or_printed_holds_raw_names(
    config, one_device, place, capsys, monkeypatch
):
    rng = np.random.default_rng(0)
    class_names = tuple(NASTY[key] for key in ("formula", "colour", "lines", "direction", "html"))
    texts = list(NASTY.values())

    def split(count, part):
        labels = np.arange(count) % 5
        pixels = np.clip(
            60 + 30 * labels[:, None, None] + rng.normal(0, 40, (count, 32, 32)), 0, 255
        )
        return LabelledImages(
            pixels.astype(np.uint8),
            labels,
            class_names,
            names=tuple(f"{texts[i % len(texts)]} {part}{i}" for i in range(count)),
            groups=[f"{texts[i % len(texts)]} {part}{i // 2}" for i in range(count)],
            name=f"set {NASTY['colour']}",
            description=NASTY["lines"],
            synthetic=True,
        )

    monkeypatch.chdir(place)
    dataset = mm.Dataset({"train": split(40, "t"), "val": split(20, "v"), "test": split(20, "e")})
    settings = config(epochs=1)
    mm.train(settings, place / "run", dataset)
    (place / "scans").mkdir()
    for text in texts:
        if text != NASTY["half"]:  # which no name of a file can be
            name = text.replace("/", "_")
            Image.fromarray(NOISE.repeat(2, 0).repeat(2, 1)).save(place / "scans" / f"{name}.png")
    for words in (
        "predict run scans",
        "predict run scans --output=p.csv",
        "predict run scans --output=p.jsonl",
        "explain run scans --method=occlusion --output=maps",
        "summarize run --output=summary",
        "report run",
    ):
        assert cli.main(words.split()) == 0, capsys.readouterr()
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert not unsafe_characters(text)
        assert not re.search(r"^(lines|error: forged)", text, re.MULTILINE)
    kinds = (".csv", ".json", ".jsonl", ".html", ".md", ".txt")
    written = [path for path in place.rglob("*") if path.suffix in kinds and path.is_file()]
    assert {path.suffix for path in written} >= {".csv", ".json", ".jsonl", ".html"}
    for path in written:
        text = path.read_bytes().decode("utf-8-sig")
        assert not unsafe_characters(text.replace("\r\n", "\n")), path
        assert "<script>alert" not in text or path.suffix != ".html", path
        if path.suffix == ".csv":
            assert not re.search(r'(^|,)"?(=|@)', text, re.MULTILINE), path
