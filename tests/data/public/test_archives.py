"""Files of folders and zips, and what is refused."""

import struct
import zipfile

import pytest

from medmamba_jax.data.public.archives import open_files


def read(location):
    with open_files(location) as files:
        return {name: read() for name, read in files.items()}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_count_as_folders(tmp_path, zipped, compression):
    parts = {f"{i}/{j}.txt": f"{i} {j}".encode() * 99 for i in range(3) for j in range(9)}
    inner = zipped(parts, compression)
    (tmp_path / "outer.zip").write_bytes(zipped({"a/inner.zip": inner, "b.txt": b"b"}, compression))
    expected = {f"a/inner.zip/{name}": content for name, content in parts.items()} | {"b.txt": b"b"}
    assert read(tmp_path / "outer.zip") == expected
    assert read(tmp_path) == {f"outer.zip/{name}": value for name, value in expected.items()}


def test_names_are_in_the_order_of_the_archive_whatever_its_directory_says(tmp_path):
    class Backwards(zipfile.ZipFile):
        def close(self):
            self.filelist.reverse()
            super().close()

    with Backwards(tmp_path / "a.zip", "w") as archive:
        for name in "xyz":
            archive.writestr(name, name)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["z", "y", "x"]
    assert list(read(tmp_path / "a.zip")) == ["x", "y", "z"]


def test_hidden_files_are_left_out(tmp_path, zipped):
    names = ["a/.hidden", ".git/b", "__MACOSX/a/._c", "a/c"]
    (tmp_path / "a.zip").write_bytes(zipped(dict.fromkeys(names, b"")))
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert list(read(tmp_path)) == ["a.zip/a/c"]


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/a", "..\\a", "C:\\a", "\\\\server\\share\\a"]
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_path_outside_of_the_folder_is_refused(tmp_path, zipped, name, nested):
    content = zipped({"good": b"", name: b""})
    (tmp_path / "a.zip").write_bytes(zipped({"inner.zip": content}) if nested else content)
    with pytest.raises(ValueError, match="path outside of its folder"):
        read(tmp_path / "a.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", b"1")
        archive.writestr("x", b"2")
    with pytest.raises(ValueError, match=r"x is in it twice"):
        read(tmp_path / "a.zip")


def test_an_encrypted_file_is_refused(tmp_path, zipped):
    content = bytearray(zipped({"x": b"secret"}))
    flags_of_the_directory = content.find(b"PK\x01\x02") + 8
    struct.pack_into("<H", content, flags_of_the_directory, 1)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match="x is encrypted"):
        read(tmp_path / "a.zip")


def test_a_damaged_zip_in_a_folder_is_named(tmp_path, zipped):
    (tmp_path / "good.zip").write_bytes(zipped({"x": b""}))
    (tmp_path / "cut.zip").write_bytes(zipped({"x": b"123"})[:-9])
    with pytest.raises(zipfile.BadZipFile, match=r"cut\.zip: File is not a zip file"):
        read(tmp_path)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, zipped, monkeypatch):
    content = zipped({"small": b"0" * 999, "large": b"0" * 1000}, zipfile.ZIP_DEFLATED)
    (tmp_path / "a.zip").write_bytes(content)
    monkeypatch.setattr("medmamba_jax.data.public.archives._LARGEST", 999)
    with open_files(tmp_path / "a.zip") as files:
        assert files["small"]() == b"0" * 999
        with pytest.raises(ValueError, match="large unpacks to 1000 bytes, too many"):
            files["large"]()


def test_a_file_that_is_larger_than_the_zip_says_is_damaged(tmp_path, zipped):
    content = bytearray(zipped({"x": b"0" * 1000}, zipfile.ZIP_DEFLATED))
    size_in_the_directory = content.find(b"PK\x01\x02") + 24
    struct.pack_into("<I", content, size_in_the_directory, 10)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        read(tmp_path / "a.zip")
